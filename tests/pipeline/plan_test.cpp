// Layouts and seconds of one job.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "pipeline/devices.hpp"
#include "tests/pipeline/planned_demo.hpp"

namespace selfcal {
namespace {

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

TEST(PlanTest, HostsWriteSideBySide) {
  const Machine devices = device_machine("h100", at::kBFloat16);
  for (const auto& [ranks, hosts] : {std::pair(1, 1), {8, 1}, {9, 2}, {64, 8}, {1024, 16}})
    EXPECT_DOUBLE_EQ(devices.disk_of(ranks), hosts * devices.disk) << ranks;
  // The same ranks on one host, and on four: the checkpoint and an export, of 4 bits and more a
  // weight, take a quarter of the time.
  const RunConfig config = demo_config({"layout.mode=shared", "export=[gptq]"});
  const auto writes = [&](int ranks_a_host) {
    return seconds_of(make_plan(config, demo_model(), 4, machine(4 * ranks_a_host, ranks_a_host)),
                      Phase::write);
  };
  const double weights = 30 * demo_model().linear_weights(), outer = demo_model().outer_parameters;
  EXPECT_GT(writes(4) - writes(1), 0.75 * 2 * (weights / 2 + 2 * outer) / Machine().disk);
  EXPECT_LT(writes(4) - writes(1), 0.75 * 2 * (weights + 2 * outer) / Machine().disk);
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

TEST(PlanTest, OnlyWhatTheNextLayerDoesNotCoverOfAWriteIsWaitedFor) {
  const auto write_seconds = [](double commit) {
    Machine here = machine(2, 1);
    here.commit = commit;
    return seconds_of(make_plan(demo_config(), demo_model(), 1, here), Phase::write);
  };
  const double at_once = write_seconds(0);
  EXPECT_NEAR(write_seconds(1e-3) - at_once, 1e-3, 1e-9) << "of the last layer";
  // Of slow ones each is longer than the work beside it.
  EXPECT_NEAR(write_seconds(200) - write_seconds(100), 30 * 100, 1e-6);
  EXPECT_LT(write_seconds(100), 30 * 100);
}

TEST(PlanTest, TheLossOnTheTextTakesAPassOfEachModel) {
  const std::string asks = "evaluate.calibration_loss=true";
  EXPECT_EQ(seconds_of(plan_of(1), Phase::evaluate), 0);
  const Plan plan = plan_of(1, {asks});
  EXPECT_GT(seconds_of(plan, Phase::evaluate), 2 * seconds_of(plan, Phase::forward));
  EXPECT_NEAR(seconds_of(plan_of(1, {asks, "calibration.sequences=256"}), Phase::evaluate),
              seconds_of(plan_of(1, {asks, "calibration.sequences=128"}), Phase::evaluate), 1e-6)
      << "no more than 32 leaves";
  const Plan four = make_plan(demo_config({asks}), demo_model(), 4, machine(8, 4));
  EXPECT_NEAR(seconds_of(four, Phase::evaluate), seconds_of(plan, Phase::evaluate) / 4, 1e-9);
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

TEST(PlanTest, DepthKeepsTheRanksBusy) {
  // Two micro-batches: two replicas of one rank, or one of two with both of them on their way.
  const Plan wide = plan_of(
                 2, {"calibration.sequences=8", "layout={mode: shared, generators: {depth: 1}}"}),
             deep = plan_of(
                 2, {"calibration.sequences=8", "layout={mode: shared, generators: {depth: 2}}"});
  EXPECT_NEAR(seconds_of(deep, Phase::sample), seconds_of(wide, Phase::sample),
              0.2 * seconds_of(wide, Phase::sample));
}

TEST(PlanTest, MicroBatchesSideBySideShareAStep) {
  // Of 4, a rank that has them all samples them in the steps of one.
  const Plan four = plan_of(1), one = plan_of(1, {"calibration.sequences=4"});
  EXPECT_EQ(four.sampled_at_once, 4);
  EXPECT_LT(seconds_of(four, Phase::sample), 2 * seconds_of(one, Phase::sample));
}

TEST(PlanTest, ScalingTableHasALineForEachNumberOfRanks) {
  const std::string table =
      scaling_table(demo_config({"layout.mode=auto"}), demo_model(), {1, 8, 64}, machine(2, 1));
  EXPECT_NE(table.find("nothing here was run"), std::string::npos) << table;
  EXPECT_NE(table.find("4 micro-batches for 64 replicas"), std::string::npos) << table;
  EXPECT_NE(table.find("100 %"), std::string::npos) << table;
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

}  // namespace
}  // namespace selfcal
