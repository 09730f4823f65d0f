// Plans of a model of the demo's size on a machine of known rates.
#include "pipeline/run_plan.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>

#include "base/error.hpp"
#include "pipeline/devices.hpp"

namespace selfcal {
namespace {

ModelSizes demo_model() {
  ModelSizes model;
  model.shape.architecture = "LlamaForCausalLM";
  model.shape.layers = 30;
  model.shape.hidden = 576;
  model.shape.vocabulary = 49152;
  model.shape.key_value_heads = 3;
  model.shape.head_dim = 64;
  model.shape.compute_dtype = at::kBFloat16;
  model.block.stages = 4;
  model.block.taps = {{"attention_input", 576, 0},
                      {"attention_output", 576, 1},
                      {"mlp_input", 576, 2},
                      {"mlp_activation", 1536, 3}};
  model.block.linears = {{"q_proj", 576, 576, 0, 0},     {"k_proj", 192, 576, 0, 0},
                         {"v_proj", 192, 576, 0, 0},     {"o_proj", 576, 576, 1, 1},
                         {"gate_proj", 1536, 576, 2, 2}, {"up_proj", 1536, 576, 2, 2},
                         {"down_proj", 576, 1536, 3, 3}};
  for (const auto& linear : model.block.linears)
    model.block_parameters += linear.rows * linear.columns;
  model.block_parameters += 2 * 576;
  model.outer_parameters = 49152 * 576 + 576;
  for (int layer = 0; layer < 30; ++layer)
    for (const auto& linear : model.block.linears)
      model.linears.push_back(
          {fmt::format("model.layers.{}.{}", layer, linear.name), linear.rows, linear.columns});
  return model;
}

Machine machine(int cores, int ranks) {
  Machine result;
  result.cores = cores;
  result.ranks = ranks;
  result.memory = uint64_t{16} << 30;
  result.rates = {2, 120e9, 12e9, {50e9, 0, 30e9, 20e9}, {}};
  return result;
}

RunConfig demo_config(const std::vector<std::string>& settings = {}) {
  return parse_config(
      "model: {path: models/demo}\noutput: runs/demo\ncalibration: {sequences: 16, length: 512, "
      "micro_batch: 4}\n"
      "layout: {mode: split}\nmethod: {group_size: 64}\n",
      "run.yaml", settings);
}

Plan plan_of(int ranks, const std::vector<std::string>& settings = {}) {
  return make_plan(demo_config(settings), demo_model(), ranks, machine(2, ranks));
}

double seconds_of(const Plan& plan, Phase phase) {
  return plan.seconds[static_cast<size_t>(phase)];
}

TEST(PlanTest, EveryLayerLeafAndMicroBatchHasARank) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    const Plan plan = plan_of(ranks);
    ASSERT_EQ(plan.ranks.size(), static_cast<size_t>(ranks));
    int64_t leaves = 0, batches = 0;
    for (const auto& rank : plan.ranks) {
      leaves += rank.leaves;
      batches += rank.micro_batches;
      EXPECT_EQ(rank.layers, 30);
      EXPECT_EQ(rank.tensors, 210);
      EXPECT_GT(rank.memory, uint64_t{120} << 20);
    }
    EXPECT_EQ(leaves, 4);
    EXPECT_EQ(batches, 4);
  }
}

TEST(PlanTest, ShardsHaveTheirOwnLayers) {
  const Plan plan = plan_of(4, {"layout.compressors={shards: 2, team: 1}"});
  EXPECT_EQ(plan.ranks[0].first_layer, 0);
  EXPECT_EQ(plan.ranks[0].layers, 15);
  EXPECT_EQ(plan.ranks[1].first_layer, 15);
  EXPECT_EQ(plan.ranks[3].layers, 15);
  EXPECT_EQ(plan.ranks[2].micro_batches, 2);
}

TEST(PlanTest, MemoryOfTheDemoIsThatOfItsParts) {
  const Plan plan = plan_of(1);
  const auto& rank = plan.ranks[0];
  ASSERT_EQ(rank.uses.size(), 3u);
  const uint64_t weights =
      2ull * (30 * demo_model().block_parameters + demo_model().outer_parameters);
  EXPECT_EQ(rank.uses[0].items[1].bytes, weights);
  EXPECT_EQ(rank.uses[0].items[2].bytes, 2ull * 2 * 30 * 4 * 512 * 3 * 64);
  EXPECT_EQ(rank.uses[2].items[2].bytes, 2ull * 16 * 512 * 576) << "hidden states of all leaves";
  EXPECT_LT(rank.memory, uint64_t{1} << 30) << "the demo fits in 1 GiB a rank";
  EXPECT_EQ(rank.memory, rank.uses[0].total());
}

TEST(PlanTest, MoreRanksOnMoreCoresAreFaster) {
  const Plan one = make_plan(demo_config(), demo_model(), 1, machine(2, 1));
  const Plan four = make_plan(demo_config(), demo_model(), 4, machine(8, 4));
  EXPECT_LT(four.total_seconds, one.total_seconds);
  EXPECT_DOUBLE_EQ(seconds_of(four, Phase::forward), seconds_of(one, Phase::forward) / 4);
  EXPECT_GT(seconds_of(four, Phase::gather), 0);
  EXPECT_EQ(seconds_of(one, Phase::gather), 0);
  EXPECT_DOUBLE_EQ(std::accumulate(one.seconds.begin(), one.seconds.end(), 0.0), one.total_seconds);
}

TEST(PlanTest, RanksThatShareCoresShareTheirSpeed) {
  const Plan one = make_plan(demo_config(), demo_model(), 1, machine(2, 1));
  const Plan four = make_plan(demo_config({"threads=1"}), demo_model(), 4, machine(2, 4));
  EXPECT_NEAR(seconds_of(four, Phase::forward), seconds_of(one, Phase::forward), 1e-9);
}

TEST(PlanTest, GivenTokensAreNotSampled) {
  const Plan plan = plan_of(2, {"calibration.source=vocabulary"});
  EXPECT_EQ(seconds_of(plan, Phase::sample), 0);
  EXPECT_EQ(plan.ranks[1].micro_batches, 0);
}

TEST(PlanTest, TwoPassLoopRunsTheForwardTwice) {
  EXPECT_DOUBLE_EQ(seconds_of(plan_of(1, {"method.sequential=per_block"}), Phase::forward),
                   2 * seconds_of(plan_of(1), Phase::forward));
}

TEST(PlanTest, DenseShardsWorkAtOnce) {
  const std::vector<std::string> shards{"layout.mode=shared", "layout.compressors.shards=2"};
  auto dense = shards;
  dense.push_back("method.propagation=dense");
  EXPECT_NEAR(seconds_of(plan_of(2, dense), Phase::solve),
              seconds_of(plan_of(2, shards), Phase::solve) / 2, 1e-9);
}

TEST(PlanTest, WhatIsLeftOpenIsChosenAndTheRestIsTold) {
  const std::vector<std::string> open{"layout.mode=auto", "calibration.source=vocabulary"};
  const Plan sequential = plan_of(4, open);
  EXPECT_EQ(sequential.layout.shards(), 1);
  EXPECT_FALSE(sequential.layout.split());
  ASSERT_FALSE(sequential.rejected.empty());
  for (const auto& other : sequential.rejected) EXPECT_GT(other.seconds, 0);

  auto dense = open;
  dense.push_back("method.propagation=dense");
  EXPECT_EQ(plan_of(4, dense).layout.shards(), 1) << "four leaves for four ranks";
  EXPECT_GT(plan_of(16, dense).layout.shards(), 1) << "sixteen ranks share no four leaves";

  auto given = dense;
  given.push_back("layout={mode: shared, compressors: {shards: 2, team: 8}}");
  EXPECT_TRUE(plan_of(16, given).rejected.empty());
}

TEST(PlanTest, WeighsSeveralSplitsAndCountsOfShards) {
  const auto layouts = [](int ranks, const std::string& propagation) {
    const Plan plan = plan_of(ranks, {"layout.mode=auto", "method.propagation=" + propagation});
    std::set<std::string> found{plan.layout.describe()};
    for (const auto& other : plan.rejected) found.insert(other.layout);
    return found;
  };
  const auto is_among = [](const std::set<std::string>& found, const std::string& start) {
    return std::ranges::any_of(
        found, [&](const std::string& layout) { return layout.starts_with(start); });
  };
  const auto eight = layouts(8, "sequential");
  EXPECT_EQ(eight.size(), 5u) << "shared, and four splits";
  for (const char* split :
       {"1 generator + 7", "2 generators + 6", "4 generators + 4", "6 generators + 2"})
    EXPECT_TRUE(is_among(eight, split)) << split;
  const auto six = layouts(6, "dense");
  for (const char* shards : {"(3 shards x 2)", "(6 shards x 1)"})
    EXPECT_TRUE(is_among(six, std::string("6 of 6 ranks generate, then all compress ") + shards));
  EXPECT_LT(layouts(64, "dense").size(), 80u) << "few enough to weigh at each start";
}

TEST(PlanTest, TheChoiceDoesNotDependOnTheMomentsRates) {
  const RunConfig config = demo_config({"layout.mode=auto", "method.propagation=dense"});
  for (const int ranks : {2, 4, 8, 16}) {
    Machine slow = machine(2, ranks);
    slow.rates.forward /= 100;
    EXPECT_EQ(make_plan(config, demo_model(), ranks, slow).layout.describe(),
              make_plan(config, demo_model(), ranks, Machine{}).layout.describe());
  }
}

TEST(PlanTest, ACopyIsSpreadOverTheFewestRanksThatHoldIt) {
  EXPECT_EQ(plan_of(8, {"layout.mode=shared"}).layout.depth(), 1);
  const Plan tight = plan_of(8, {"layout.mode=shared", "layout.memory=410MiB"});
  EXPECT_EQ(tight.layout.depth(), 2);
  EXPECT_LE(tight.largest_rank().memory, uint64_t{410} << 20);
  // Two ranks a copy halve its weights, and each holds its layers' caches of two micro-batches.
  const auto& first = tight.ranks[0].uses[0];
  EXPECT_EQ(first.items[2].what, "keys and values of 2 micro-batches");
  EXPECT_LT(first.items[1].bytes, plan_of(1).ranks[0].uses[0].items[1].bytes);
}

TEST(PlanTest, DepthKeepsTheRanksBusy) {
  // Four micro-batches: two replicas of one rank, or one of two with two of them on their way.
  const Plan wide = plan_of(2, {"layout={mode: shared, generators: {depth: 1}}"}),
             deep = plan_of(2, {"layout={mode: shared, generators: {depth: 2}}"});
  EXPECT_NEAR(seconds_of(deep, Phase::sample), seconds_of(wide, Phase::sample),
              0.2 * seconds_of(wide, Phase::sample));
}

TEST(PlanTest, ScalingTableHasALineForEachNumberOfRanks) {
  const std::string table =
      scaling_table(demo_config({"layout.mode=auto"}), demo_model(), {1, 8, 64}, machine(2, 1));
  EXPECT_NE(table.find("nothing here was run"), std::string::npos) << table;
  EXPECT_NE(table.find("4 micro-batches for 64 replicas"), std::string::npos) << table;
  EXPECT_NE(table.find("100 %"), std::string::npos) << table;
}

TEST(PlanTest, RecomputesBeforeItRefuses) {
  const auto with_limit = [](const std::string& limit) {
    return plan_of(1, {"calibration.source=vocabulary", "calibration.sequences=2048",
                       "layout.memory=" + limit});
  };
  EXPECT_TRUE(with_limit("8GiB").keeps_states);
  const Plan tight = with_limit("2GiB");
  EXPECT_FALSE(tight.keeps_states);
  EXPECT_LE(tight.ranks[0].memory, uint64_t{2} << 30);
  try {
    with_limit("900MiB");
    ADD_FAILURE() << "1.2 GiB of hidden states do not fit";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_TRUE(std::string(error.what()).starts_with("layout.memory: rank 0 needs "))
        << error.what();
    for (const char* there : {"found 900 MiB", "while it compresses", "a team of "})
      EXPECT_NE(std::string(error.what()).find(there), std::string::npos) << error.what();
  }
}

TEST(PlanTest, TextHasTheFigures) {
  const RunConfig config = demo_config();
  const std::string text = to_text(plan_of(4), config, demo_model());
  for (const char* there :
       {"LlamaForCausalLM", "30 layers of 3.54 M weights", "16 sequences of 512 tokens",
        "4 micro-batches", "2 generators + 2 compressors", "samples, then compresses",
        "weights of the whole model", "factorise", "a rank may use"})
    EXPECT_NE(text.find(there), std::string::npos) << there << "\n" << text;
}

TEST(PlanTest, MemoryIsReadable) {
  EXPECT_EQ(memory_text(1 << 20), "1.0 MiB");
  EXPECT_EQ(memory_text(uint64_t{412} << 20), "412 MiB");
  EXPECT_EQ(memory_text(uint64_t{40} << 30), "40.0 GiB");
}

TEST(PlanTest, CountsThePassThatWeighsBlocksByOutliers) {
  const std::vector<std::string> uniform{"method={name: wanda, sparsity: 0.5}", "export=[]",
                                         "layout.mode=shared"};
  std::vector<std::string> owl = uniform;
  owl.push_back("method.layer_sparsity=owl");
  for (const int ranks : {1, 4}) {
    const Plan without = plan_of(ranks, uniform), with = plan_of(ranks, owl);
    EXPECT_EQ(sum(without.outlier_seconds), 0);
    EXPECT_GT(sum(with.outlier_seconds), 0);
    EXPECT_NEAR(with.total_seconds - without.total_seconds, sum(with.outlier_seconds), 1e-9);
    // A forward more than the one that compresses.
    EXPECT_NEAR(seconds_of(with, Phase::forward), 2 * seconds_of(without, Phase::forward), 1e-9);
  }
  // The pass is dealt over all ranks, whatever the shards.
  owl.push_back("layout.compressors={shards: 4, team: 1}");
  EXPECT_NEAR(sum(plan_of(4, owl).outlier_seconds),
              sum(plan_of(4, {owl.begin(), owl.end() - 1}).outlier_seconds), 1e-9);
}

uint64_t bytes_of(const Plan& plan, const std::string& what) {
  uint64_t bytes = 0;
  for (const auto& use : plan.ranks.front().uses)
    for (const auto& item : use.items)
      if (item.what == what) bytes += item.bytes;
  return bytes;
}

TEST(PlanTest, HessiansThatWaitForTheirStageAreCounted) {
  const std::string others = "Hessians of the block's other inputs",
                    factors = "factors that jobs share",
                    module = "a module that scales are tried on";
  ModelSizes model = demo_model();
  model.block.scale_pairs = {{"norm", {"q_proj", "k_proj", "v_proj"}, "self_attn"},
                             {"norm", {"gate_proj", "up_proj"}, "mlp"},
                             {"up_proj", {"down_proj"}, "down_proj"}};
  const auto plan = [&](const std::vector<std::string>& settings, int sharing = 1) {
    return make_plan(demo_config(settings), model, 1, machine(2, 1), sharing);
  };
  const uint64_t narrow = 4 * 576 * 576, wide = 4 * 1536 * 1536;
  EXPECT_EQ(bytes_of(plan({}), others), 0u);
  EXPECT_EQ(bytes_of(plan({"method.propagation=dense"}), others), 3 * narrow);
  EXPECT_EQ(bytes_of(plan({"method.sequential=per_block"}), others), 3 * narrow);
  EXPECT_EQ(bytes_of(plan({"method.name=awq"}), others), 2 * narrow) << "o_proj has no pair";
  EXPECT_EQ(bytes_of(plan({"method.name=awq", "method.propagation=dense"}), others), 3 * narrow);
  EXPECT_EQ(bytes_of(plan({"overrides=[{match: q_proj, method: awq}]"}), others), 2 * narrow);
  const Plan shared = plan({"method.propagation=dense"}, 3);
  EXPECT_EQ(bytes_of(shared, others), 3 * narrow);
  EXPECT_EQ(bytes_of(shared, factors), 3 * narrow + wide);
  const std::string scaled = "Hessians behind a job's own scales";
  EXPECT_EQ(bytes_of(shared, scaled), 0u);
  EXPECT_EQ(bytes_of(plan({"method.name=awq", "method.propagation=dense"}, 3), scaled),
            2 * narrow + wide);
  EXPECT_EQ(bytes_of(plan({"method.name=awq"}), module), 0u);
  EXPECT_EQ(bytes_of(plan({"method.name=awq", "method.scale_loss=module"}), module),
            2u * (2 * 1536 * 576 + 2 * 2048 * 576));
}

TEST(PlanTest, DenseJobsOfOneForwardShareIt) {
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

TEST(PlanTest, AwqTakesAPassOfItsOwnAndASearch) {
  const Plan nearest = plan_of(1, {"method.name=nearest"}), awq = plan_of(1, {"method.name=awq"}),
             module = plan_of(1, {"method.name=awq", "method.scale_loss=module"});
  EXPECT_GT(seconds_of(awq, Phase::forward), 1.5 * seconds_of(nearest, Phase::forward));
  EXPECT_GT(seconds_of(awq, Phase::solve), 2 * seconds_of(nearest, Phase::solve));
  EXPECT_GT(seconds_of(module, Phase::solve), 2 * seconds_of(awq, Phase::forward));
}

TEST(PlanTest, RatesOfThisMachineArePlausible) {
  ThreadPool pool(1, kernels::use_one_library_thread);
  kernels::use_one_library_thread();
  const auto model =
      open_model(fs::path(SELFCAL_TEST_DATA) / "models" / "tied-bf16", "auto", {&pool});
  const HardwareRates rates = measure_rates(
      {&pool}, *model,
      resolve(demo_config({"calibration.length=32", "method.group_size=16"}), model->shape()));
  EXPECT_EQ(rates.threads, 1);
  std::vector<double> all{rates.forward, rates.decode};
  for (const auto& tap : model->block(0).spec().taps) {
    const WidthRates& width = rates.at(tap.columns);
    ASSERT_TRUE(rates.by_width.contains(tap.columns));
    all.insert(all.end(), {width.statistics, width.factorise, width.solve});
  }
  for (const double rate : all) {
    EXPECT_GT(rate, 1e5);
    EXPECT_LT(rate, 1e14);
  }
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

TEST(PlanTest, SequentialJobsFollowEachOtherThroughTheShards) {
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

TEST(PlanTest, TheSlowestShardSetsThePaceOfAWavefront) {
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

TEST(PlanTest, ShardsAreCutByWhatTheirLayersCost) {
  const std::string two = "layout={mode: shared, compressors: {shards: 2}}",
                    first_ten = "match: 'layers\\.[0-9]\\.'",
                    last_ten = "match: 'layers\\.2[0-9]\\.'";
  const auto plan = [&](const std::string& overrides) {
    return plan_of(4, {two, "method={name: gptq}", "overrides=[{" + overrides + "}]"});
  };
  EXPECT_EQ(plan_of(4, {two}).layout.first_layer(1), 15);
  EXPECT_LT(plan(first_ten + ", method: awq").layout.first_layer(1), 15) << "a search more";
  EXPECT_GT(plan(first_ten + ", skip: true").layout.first_layer(1), 15) << "a forward, no more";
  EXPECT_LT(plan(last_ten + ", skip: true").layout.first_layer(1), 15);
  // A rank alone has no controls to measure while a factor is found.
  EXPECT_GT(plan_of(2, {two, "calibration.sequences=4",
                        "overrides=[{" + first_ten + ", method: nearest}]"})
                .layout.first_layer(1),
            15)
      << "no factor";
  // Unlike layers add up: as many of one kind as of the other, and there is less to write of codes
  // of fewer bits.
  const auto seconds = [&](const std::vector<std::string>& settings, Phase phase) {
    return seconds_of(plan_of(1, settings), phase);
  };
  const std::string half = "overrides=[{match: 'layers\\.([0-9]|1[0-4])\\.', ";
  for (const Phase phase : {Phase::solve, Phase::factorise, Phase::statistics})
    EXPECT_NEAR(seconds({half + "skip: true}]"}, phase), seconds({}, phase) / 2, 1e-9);
  EXPECT_EQ(seconds({half + "skip: true}]"}, Phase::forward), seconds({}, Phase::forward));
  EXPECT_LT(seconds({half + "bits: 2}]"}, Phase::write), seconds({}, Phase::write));
  EXPECT_NEAR(seconds({half + "method: awq}]"}, Phase::forward), 1.5 * seconds({}, Phase::forward),
              1e-9);
}

TEST(PlanTest, OneShardTakesOneJobAfterTheOther) {
  const std::vector<PlannedJob> jobs = jobs_on_shards(3, 1);
  const Plan& one = jobs.front().plan;
  EXPECT_NEAR(sum_of(seconds_beside_others(jobs)),
              3 * one.total_seconds - 2 * seconds_of(one, Phase::sample), 1e-9);
}

TEST(PlanTest, DenseJobsOfOneTextShareItsForward) {
  const std::vector<PlannedJob> jobs = jobs_on_shards(3, 1, {"method.propagation=dense"});
  const Plan& one = jobs.front().plan;
  double shared = 0;
  for (const Phase phase :
       {Phase::sample, Phase::read, Phase::forward, Phase::statistics, Phase::reduce})
    shared += seconds_of(one, phase);
  EXPECT_NEAR(sum_of(seconds_beside_others(jobs)), 3 * one.total_seconds - 2 * shared, 1e-9);
}

/// So many jobs of one text with grids left to the plan.
std::vector<PlannedJob> run_of(size_t count, int ranks, const std::string& propagation) {
  const RunConfig config =
      demo_config({"layout.mode=auto", "method.propagation=" + propagation, "threads=1"});
  return plan_run(std::vector<JobToPlan>(count, {config, demo_model(), machine(ranks, ranks)}),
                  ranks);
}

TEST(PlanTest, ManySequentialJobsFlowThroughShards) {
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

TEST(PlanTest, AJobOfARunIsPlannedAsTheRunIs) {
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

TEST(PlanTest, TextsAreWrittenWhileEarlierJobsAreCompressed) {
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

TEST(PlanTest, NothingIsWrittenAheadForOneTextOrWithoutTheMemory) {
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

TEST(PlanTest, ARunThatDoesNotFitNamesTheJob) {
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

uint64_t item(const std::vector<MemoryUse>& uses, const std::string& when,
              const std::string& what) {
  for (const auto& use : uses)
    for (const auto& found : use.items)
      if (use.when == when && found.what == what) return found.bytes;
  ADD_FAILURE() << when << ": no " << what;
  return 0;
}

/// Of what a rank holds while it compresses: the part that its team shares, and the rest.
std::pair<uint64_t, uint64_t> shared_and_rest(const RankPlan& rank) {
  std::pair<uint64_t, uint64_t> bytes;
  for (const auto& use : rank.uses)
    for (const auto& found : use.items)
      if (use.when == "compresses")
        (found.shared_by_team ? bytes.first : bytes.second) += found.bytes;
  return bytes;
}

TEST(PlanTest, ActivationsFallAsOneOverTheTeam) {
  const auto rank_of = [](int ranks) {
    return plan_of(ranks, {"layout.mode=shared", "calibration.sequences=64"}).ranks.front();
  };
  const auto [alone, rest] = shared_and_rest(rank_of(1));
  EXPECT_EQ(alone, 2ull * 64 * 512 * (2 * 576 + 1536)) << "hidden states and inputs of a stage";
  for (const int team : {2, 4, 8}) {
    EXPECT_EQ(shared_and_rest(rank_of(team)).first, alone / static_cast<uint64_t>(team));
    EXPECT_EQ(shared_and_rest(rank_of(team)).second, rest);
  }
  const std::string text = to_text(
      plan_of(2, {"layout.mode=shared", "calibration={sequences: 512, source: vocabulary}"}),
      demo_config(), demo_model());
  EXPECT_NE(text.find("  1/team\n"), std::string::npos) << text;
  EXPECT_NE(text.find("of it falls as 1/team, the rest does not"), std::string::npos) << text;
}

TEST(PlanTest, WhatWaitsAtTheEdgesOfShardsIsCounted) {
  const uint64_t sequence = 2ull * 512 * 576;  // hidden states
  const auto plan = [&](const std::vector<std::string>& settings, bool followed) {
    std::vector<std::string> all{"layout={mode: shared, compressors: {shards: 2}}"};
    all.insert(all.end(), settings.begin(), settings.end());
    return make_plan(demo_config(all), demo_model(), 2, machine(2, 2), 1, followed);
  };
  const auto has = [](const RankPlan& rank, const std::string& what) {
    return std::ranges::any_of(rank.uses, [&](const MemoryUse& use) {
      return std::ranges::any_of(use.items,
                                 [&](const MemoryItem& found) { return found.what == what; });
    });
  };
  const std::string waiting = "outputs of the job before",
                    received = "hidden states of the leaves, received",
                    forwarded = "leaves for later shards";
  const Plan wavefront = plan({}, true);
  EXPECT_EQ(item(wavefront.ranks[0].uses, "compresses", waiting), 16 * sequence);
  EXPECT_FALSE(has(wavefront.ranks[1], waiting)) << "the last shard hands nothing over";
  EXPECT_FALSE(has(plan({}, false).ranks[0], waiting)) << "no job follows";

  const Plan dense = plan({"method.propagation=dense"}, true);
  EXPECT_FALSE(has(dense.ranks[0], received));
  EXPECT_EQ(item(dense.ranks[1].uses, "samples", received), 16 * sequence);
  for (const auto& rank : dense.ranks) {
    EXPECT_FALSE(has(rank, waiting));
    EXPECT_GT(item(rank.uses, "samples", forwarded), 2 * 4 * sequence) << "a micro-batch, twice";
  }
  const Plan given = plan({"method.propagation=dense", "calibration.source=vocabulary"}, false);
  EXPECT_GT(item(given.ranks[0].uses, "forwards for later shards", forwarded), 8 * sequence);
}

TEST(PlanTest, KnowsWhatAGpuHolds) {
  const ModelSizes model = demo_model();
  const auto plan_on_h100 = [&](const std::vector<std::string>& settings = {}) {
    return make_plan(demo_config(settings), model, 1, device_machine("h100", at::kBFloat16));
  };
  const Plan plan = plan_on_h100();
  const RankPlan& rank = plan.ranks.front();
  EXPECT_TRUE(plan.on_device);
  EXPECT_EQ(plan.memory_limit, 80'000'000'000u);
  EXPECT_EQ(item(rank.uses, "samples", "weights of the whole model"),
            2 * static_cast<uint64_t>(30 * model.block_parameters + model.outer_parameters));
  EXPECT_EQ(item(rank.uses, "samples", "logits of a step"), 4u * 4 * 49152);
  EXPECT_EQ(item(rank.uses, "measures", "hidden states of the leaves"), 2u * 16 * 512 * 576);
  EXPECT_EQ(item(rank.uses, "measures", "Hessian: sums as integers, upper half"),
            4u * 1536 * 1536 + 4u * 1024 * 1536);
  EXPECT_EQ(item(rank.uses, "factorises", "factor, and room to find it"), 12u * 1536 * 1536);
  EXPECT_EQ(item(rank.uses, "solves", "factor"), 4u * 1536 * 1536);
  EXPECT_EQ(item(rank.uses, "solves", "rows on their way"), 8u * 4 * 1536 * 768);
  uint64_t most = 0;
  for (const auto& use : rank.uses) most = std::max(most, use.total());
  EXPECT_EQ(rank.memory, most);
  EXPECT_EQ(item(rank.host_uses, "compresses", "weights of a block, and of the next"),
            3 * 2 * static_cast<uint64_t>(model.block_parameters));
  EXPECT_EQ(rank.host_uses.back().items.back().what, "solved rows");

  const std::string text = to_text(plan, demo_config(), model);
  for (const char* there : {"solves       on the device", "memory of rank 0's GPU while it",
                            "a GPU has                                 74.5 GiB",
                            "memory of rank 0 on the host while it"})
    EXPECT_NE(text.find(there), std::string::npos) << there << text;
  const Plan on_host = plan_on_h100({"method={name: awq}"});
  EXPECT_EQ(item(on_host.ranks.front().host_uses, "compresses",
                 "Hessian and factor of what the host solves"),
            12u * 1536 * 1536);
  EXPECT_NE(to_text(on_host, demo_config({"method={name: awq}"}), model)
                .find("on the host's threads: 210 of 210 layers: awq has no kernel"),
            std::string::npos);
}

TEST(PlanTest, ARealGpuIsALimitToo) {
  Machine here = machine(2, 1);
  here.device_memory = uint64_t{1200} << 20;
  try {
    make_plan(demo_config({"device=cuda"}), demo_model(), 1, here);
    ADD_FAILURE() << "the weights of the whole model do not fit";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_TRUE(std::string(error.what()).starts_with("device: cuda: rank 0 needs "))
        << error.what();
  }
  here.device_memory = uint64_t{80} << 30;
  EXPECT_TRUE(make_plan(demo_config({"device=cuda"}), demo_model(), 1, here).on_device);
  EXPECT_FALSE(make_plan(demo_config(), demo_model(), 1, machine(2, 1)).on_device);
}

TEST(PlanTest, KnowsThisMachine) {
  const Machine here = this_machine(2);
  EXPECT_GE(here.cores, 1);
  EXPECT_EQ(here.ranks, 2);
  EXPECT_GT(here.memory, uint64_t{1} << 28);
}

}  // namespace
}  // namespace selfcal
