// Plans of runs of several jobs.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/error.hpp"
#include "tests/pipeline/planned_demo.hpp"

namespace selfcal {
namespace {

TEST(PlanJobsTest, DenseJobsOfOneForwardShareIt) {
  const RunConfig dense = demo_config({"method.propagation=dense"}), sequential = demo_config(),
                  awq = demo_config({"method.propagation=dense", "method.name=awq"}),
                  module = demo_config(
                      {"method.propagation=dense", "method.name=awq", "method.scale_loss=module"}),
                  three = demo_config({"method.propagation=dense", "method.bits=3"}),
                  other = demo_config({"method.propagation=dense", "seed=1"});
  const std::vector<RunConfig> all{dense, sequential, awq, module, three, other};
  for (const auto& sharing : {dense, awq, three}) EXPECT_EQ(jobs_sharing(sharing, all), 3);
  for (const auto& alone : {sequential, module, other}) EXPECT_EQ(jobs_sharing(alone, all), 1);
}

double sum_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

/// Jobs of one text and different methods on two ranks.
std::vector<PlannedJob> jobs_on_shards(size_t count, int shards,
                                       const std::vector<std::string>& more = {}) {
  std::vector<std::string> settings{"layout.mode=shared",
                                    fmt::format("layout.compressors.shards={}", shards)};
  settings.insert(settings.end(), more.begin(), more.end());
  const RunConfig config = demo_config(settings);
  const Plan plan = make_plan(config, demo_model(), 2, machine(2, 2));
  return std::vector<PlannedJob>(count, {config, demo_model(), plan});
}

TEST(PlanJobsTest, SequentialJobsFollowEachOtherThroughTheShards) {
  const std::vector<PlannedJob> jobs = jobs_on_shards(5, 2);
  const std::vector<double> seconds = seconds_beside_others(jobs);
  const Plan& one = jobs.front().plan;
  const double compression = one.total_seconds - seconds_of(one, Phase::sample);
  EXPECT_NEAR(seconds.front(), one.total_seconds, 1e-9) << "the first passes through both shards";
  for (size_t job = 1; job < seconds.size(); ++job)
    EXPECT_NEAR(seconds[job], compression / 2, 1e-9) << "the other shard works on its neighbour";
  // The closed form: shards + jobs - 1 turns of a shard.
  EXPECT_NEAR(sum_of(seconds), seconds_of(one, Phase::sample) + 6 * compression / 2, 1e-9);
}

TEST(PlanJobsTest, TheSlowestShardSetsThePaceOfAWavefront) {
  const ModelSizes model = demo_model();
  const RunConfig config = demo_config({"layout.mode=shared", "layout.compressors.shards=2",
                                        "overrides=[{match: 'layers\\.[0-9]\\.', method: awq}]"});
  const Plan plan = make_plan(config, model, 2, machine(2, 2));
  const auto& parts = plan.shard_parts;
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_NEAR(sum_of(parts), 1, 1e-9);
  const double most = std::max(parts[0], parts[1]);
  ASSERT_NE(parts[0], parts[1]);
  const std::vector<double> seconds =
      seconds_beside_others(std::vector<PlannedJob>(3, {config, model, plan}));
  const double compression = plan.total_seconds - seconds_of(plan, Phase::sample);
  for (const size_t job : {1, 2}) EXPECT_NEAR(seconds[job], compression * most, 1e-9);
}

TEST(PlanJobsTest, OneShardTakesOneJobAfterTheOther) {
  const std::vector<PlannedJob> jobs = jobs_on_shards(3, 1);
  const Plan& one = jobs.front().plan;
  EXPECT_NEAR(sum_of(seconds_beside_others(jobs)),
              3 * one.total_seconds - 2 * seconds_of(one, Phase::sample), 1e-9);
}

TEST(PlanJobsTest, DenseJobsOfOneTextShareItsForward) {
  const std::vector<PlannedJob> jobs = jobs_on_shards(3, 1, {"method.propagation=dense"});
  const Plan& one = jobs.front().plan;
  double shared = 0;
  for (const Phase phase :
       {Phase::sample, Phase::read, Phase::forward, Phase::statistics, Phase::reduce})
    shared += seconds_of(one, phase);
  EXPECT_NEAR(sum_of(seconds_beside_others(jobs)), 3 * one.total_seconds - 2 * shared, 1e-9);
}

TEST(PlanJobsTest, JobsThatDifferInPropagationOnlyMeasureTheirLoss) {
  const auto plans = [](const std::vector<std::string>& propagations) {
    std::vector<JobToPlan> jobs;
    for (const auto& propagation : propagations)
      jobs.push_back({demo_config({"method.propagation=" + propagation, "layout.mode=shared"}),
                      demo_model(), machine(2, 2)});
    return plan_run(jobs, 2);
  };
  const double passes = seconds_of(plans({"dense", "sequential"})[1].plan, Phase::evaluate);
  EXPECT_GT(passes, 0);
  EXPECT_EQ(seconds_of(plans({"dense"})[0].plan, Phase::evaluate), 0);
  // The dense model's pass is made once.
  const auto both = plans({"sequential", "dense"});
  const auto& second = both[1].plan;
  EXPECT_NEAR(seconds_beside_others(both)[1],
              second.total_seconds - seconds_of(second, Phase::sample) - passes / 2, 1e-9);
}

/// So many jobs of one text with grids left to the plan.
std::vector<PlannedJob> run_of(size_t count, int ranks, const std::string& propagation) {
  const RunConfig config =
      demo_config({"layout.mode=auto", "method.propagation=" + propagation, "threads=1"});
  return plan_run(std::vector<JobToPlan>(count, {config, demo_model(), machine(ranks, ranks)}),
                  ranks);
}

TEST(PlanJobsTest, ManySequentialJobsFlowThroughShards) {
  EXPECT_EQ(run_of(1, 8, "sequential").front().plan.layout.shards(), 1);
  const auto jobs = run_of(12, 8, "sequential");
  const Plan& first = jobs.front().plan;
  EXPECT_GT(first.layout.shards(), 1);
  for (const auto& job : jobs) EXPECT_EQ(job.plan.layout.describe(), first.layout.describe());
  // What was not taken is there with the seconds of all jobs, and is not faster by the same model.
  ASSERT_FALSE(first.rejected.empty());
  const double taken = sum_of(seconds_beside_others(jobs));
  bool one_shard = false;
  for (const auto& other : first.rejected) {
    EXPECT_NE(other.layout.find("all 12 jobs"), std::string::npos);
    if (other.layout.find("1 shard x 8") == std::string::npos) continue;
    one_shard = true;
    EXPECT_GT(other.seconds, taken);
  }
  EXPECT_TRUE(one_shard);
}

TEST(PlanJobsTest, AJobOfARunIsPlannedAsTheRunIs) {
  const auto jobs = run_of(3, 4, "dense");
  const auto alone = run_of(1, 4, "dense");
  EXPECT_EQ(jobs.size(), 3u);
  EXPECT_EQ(alone.size(), 1u);
  for (const auto& job : jobs)
    EXPECT_EQ(job.plan.layout.shards(), jobs.front().plan.layout.shards());
}

/// Jobs of texts of their own on one generator and one compressor.
std::vector<PlannedJob> jobs_of_own_texts(size_t count, const std::vector<std::string>& more = {}) {
  std::vector<JobToPlan> jobs;
  for (size_t seed = 0; seed < count; ++seed) {
    std::vector<std::string> settings{"layout.mode=split", "layout.compressors.shards=1",
                                      fmt::format("seed={}", seed)};
    settings.insert(settings.end(), more.begin(), more.end());
    jobs.push_back({demo_config(settings), demo_model(), machine(2, 2)});
  }
  return plan_run(jobs, 2);
}

TEST(PlanJobsTest, TextsAreWrittenWhileEarlierJobsAreCompressed) {
  const auto jobs = jobs_of_own_texts(4);
  ASSERT_TRUE(write_ahead(jobs));
  const Plan& all = jobs.front().plan;
  const Plan& apart = *jobs.front().while_writing;
  EXPECT_EQ(apart.layout.ranks(), 1);
  EXPECT_EQ(seconds_of(apart, Phase::sample), 0);
  EXPECT_GT(apart.total_seconds, all.total_seconds - seconds_of(all, Phase::sample))
      << "one compressor needs longer than both ranks";
  // Nothing of the texts is missing or counted twice: the slower side sets the pace, and the last
  // job is everybody's.
  const double sampling = seconds_of(all, Phase::sample), alone = apart.total_seconds,
               together = all.total_seconds - sampling;
  double now = 0;
  for (int job = 0; job < 4; ++job) {
    now = std::max(now, (job + 1) * sampling);
    now += now < 4 * sampling ? alone : together;
  }
  EXPECT_NEAR(sum_of(seconds_beside_others(jobs)), now, 1e-9);
  EXPECT_LT(now, 4 * all.total_seconds);
  EXPECT_GE(now, 4 * sampling + together - 1e-9);
  EXPECT_NE(to_text(jobs).find("generators write for"), std::string::npos);
}

TEST(PlanJobsTest, NothingIsWrittenAheadForOneTextOrWithoutTheMemory) {
  EXPECT_FALSE(write_ahead(jobs_of_own_texts(1)));
  EXPECT_FALSE(write_ahead(jobs_of_own_texts(2, {"layout.mode=shared"})));
  EXPECT_FALSE(write_ahead(jobs_of_own_texts(2, {"calibration.source=vocabulary"})));
  auto one_text = jobs_of_own_texts(2);
  one_text[1].config.seed = one_text[0].config.seed;
  EXPECT_FALSE(write_ahead(one_text));
  // What both ranks have the memory for, if need be by computing again, is more than one has.
  const auto jobs = jobs_of_own_texts(2, {"calibration.sequences=512"});
  const uint64_t both = jobs.front().plan.largest_rank().memory;
  ASSERT_GT(jobs.front().while_writing->largest_rank().memory, both);
  uint64_t least = both;
  for (uint64_t limit = both; limit > 0; limit -= both / 64) try {
      jobs_of_own_texts(2, {"calibration.sequences=512", fmt::format("layout.memory={}", limit)});
      least = limit;
    } catch (const Error&) {
      break;
    }
  const auto tight =
      jobs_of_own_texts(2, {"calibration.sequences=512", fmt::format("layout.memory={}", least)});
  EXPECT_FALSE(write_ahead(tight));
  EXPECT_FALSE(tight.front().while_writing.has_value());
}

TEST(PlanJobsTest, ARunThatDoesNotFitNamesTheJob) {
  RunConfig config = demo_config({"layout.memory=100MiB"});
  config.name = "large";
  const std::vector<JobToPlan> jobs(2, {config, demo_model(), machine(2, 2)});
  try {
    plan_run(jobs, 2);
    FAIL() << "it fits";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_NE(std::string(error.what()).find("job large: layout.memory"), std::string::npos);
  }
}

}  // namespace
}  // namespace selfcal
