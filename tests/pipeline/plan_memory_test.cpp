// What ranks are planned to hold.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.hpp"
#include "pipeline/devices.hpp"
#include "tests/pipeline/planned_demo.hpp"

namespace selfcal {
namespace {

TEST(PlanMemoryTest, MemoryOfTheDemoIsThatOfItsParts) {
  const Plan plan = plan_of(1);
  const auto& rank = plan.ranks[0];
  ASSERT_EQ(rank.uses.size(), 8u);
  const uint64_t weights =
      2ull * (30 * demo_model().block_parameters + demo_model().outer_parameters);
  EXPECT_EQ(rank.uses[0].items[1].bytes, weights);
  EXPECT_EQ(rank.uses[0].items[2].what, "keys and values of 4 micro-batches");
  EXPECT_EQ(rank.uses[0].items[2].bytes, 4 * (2ull * 2 * 30 * 4 * 512 * 3 * 64));
  EXPECT_EQ(rank.uses[2].items[3].bytes, 2ull * 16 * 512 * 576) << "hidden states of all leaves";
  EXPECT_LT(rank.memory, uint64_t{1} << 30) << "the demo fits in 1 GiB a rank";
  EXPECT_EQ(rank.memory, rank.uses[0].total());
}

TEST(PlanMemoryTest, ACopyIsSpreadOverTheFewestRanksThatHoldIt) {
  EXPECT_EQ(plan_of(8, {"layout.mode=shared"}).layout.depth(), 1);
  const Plan tight = plan_of(8, {"layout.mode=shared", "layout.memory=410MiB"});
  EXPECT_EQ(tight.layout.depth(), 2);
  EXPECT_LE(tight.largest_rank().memory, uint64_t{410} << 20);
  // Two ranks a copy halve its weights, and each holds its layers' caches of two micro-batches.
  const auto& first = tight.ranks[0].uses[0];
  EXPECT_EQ(first.items[2].what, "keys and values of 2 micro-batches");
  EXPECT_LT(first.items[1].bytes, plan_of(1).ranks[0].uses[0].items[1].bytes);
}

TEST(PlanMemoryTest, FewerMicroBatchesSideBySideBeforeItRefuses) {
  const Plan plenty = plan_of(1), tight = plan_of(1, {"layout.memory=520MiB"});
  EXPECT_EQ(plenty.sampled_at_once, 4);
  EXPECT_LT(tight.sampled_at_once, 4);
  EXPECT_TRUE(tight.keeps_states);
  EXPECT_LE(tight.largest_rank().memory, uint64_t{520} << 20);
}

TEST(PlanMemoryTest, RecomputesBeforeItRefuses) {
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
    for (const char* there : {"found 900 MiB", "while it measures", "a team of "})
      EXPECT_NE(std::string(error.what()).find(there), std::string::npos) << error.what();
  }
}

TEST(PlanMemoryTest, MemoryIsReadable) {
  EXPECT_EQ(memory_text(1 << 20), "1.0 MiB");
  EXPECT_EQ(memory_text(uint64_t{412} << 20), "412 MiB");
  EXPECT_EQ(memory_text(uint64_t{40} << 30), "40.0 GiB");
}

/// At any time; 0 where there is no such item.
uint64_t bytes_of(const Plan& plan, const std::string& what) {
  uint64_t bytes = 0;
  for (const auto& use : plan.ranks.front().uses)
    for (const auto& item : use.items)
      if (item.what == what) bytes = std::max(bytes, item.bytes);
  return bytes;
}

TEST(PlanMemoryTest, HessiansThatWaitForTheirStageAreCounted) {
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

uint64_t item(const std::vector<MemoryUse>& uses, const std::string& when,
              const std::string& what) {
  for (const auto& use : uses)
    for (const auto& found : use.items)
      if (use.when == when && found.what == what) return found.bytes;
  ADD_FAILURE() << when << ": no " << what;
  return 0;
}

/// Of what a rank holds while it measures: the part that its team shares, and the rest.
std::pair<uint64_t, uint64_t> shared_and_rest(const RankPlan& rank) {
  std::pair<uint64_t, uint64_t> bytes;
  for (const auto& use : rank.uses)
    for (const auto& found : use.items)
      if (use.when == "measures" && found.what != "freed memory that is kept")
        (found.shared_by_team ? bytes.first : bytes.second) += found.bytes;
  return bytes;
}

TEST(PlanMemoryTest, ActivationsFallAsOneOverTheTeam) {
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

/// A layer is in its file before the last stage of the next one, whose input is the widest.
TEST(PlanMemoryTest, ALayerIsWrittenBesideNarrowInputs) {
  const auto uses = plan_of(1).ranks[0].uses;
  const std::string written = "the layer that is being written", hessian = "Hessian: float32";
  EXPECT_GT(item(uses, "solves before the last stage", written), 0u);
  EXPECT_EQ(item(uses, "solves before the last stage", hessian), 4ull * 576 * 576);
  EXPECT_EQ(item(uses, "solves", hessian), 4ull * 1536 * 1536);
  for (const auto& use : uses)
    for (const auto& found : use.items) EXPECT_FALSE(use.when == "solves" && found.what == written);
  // Where no weights are replaced before all are solved, at any time.
  EXPECT_GT(item(plan_of(1, {"method.propagation=dense"}).ranks[0].uses, "solves", written), 0u);
}

TEST(PlanMemoryTest, WhatWaitsAtTheEdgesOfShardsIsCounted) {
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
  EXPECT_EQ(item(wavefront.ranks[0].uses, "measures", waiting), 16 * sequence);
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

TEST(PlanMemoryTest, KnowsWhatAGpuHolds) {
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
  EXPECT_EQ(item(rank.uses, "samples", "logits of a step"), 4u * 4 * 4 * 49152) << "4 side by side";
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
            2 * 2 * static_cast<uint64_t>(model.block_parameters));
  EXPECT_EQ(rank.host_uses.back().items.back().what, "the layer that is being written");
  // The next block is on the GPU only where it is on its way to a team.
  EXPECT_EQ(item(rank.uses, "solves", "weights of a block"),
            2 * static_cast<uint64_t>(model.block_parameters));
  const Plan of_two = make_plan(demo_config({"layout.mode=shared"}), model, 2,
                                device_machine("h100", at::kBFloat16));
  EXPECT_EQ(item(of_two.ranks.back().uses, "solves", "weights of a block, and of the next"),
            2 * 2 * static_cast<uint64_t>(model.block_parameters));
  EXPECT_EQ(of_two.ranks.back().host_uses.back().items.back().what, "solved rows");

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

TEST(PlanMemoryTest, ARealGpuIsALimitToo) {
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

TEST(PlanMemoryTest, KnowsThisMachine) {
  const Machine here = this_machine(2);
  EXPECT_GE(here.cores, 1);
  EXPECT_EQ(here.ranks, 2);
  EXPECT_GT(here.memory, uint64_t{1} << 28);
}

}  // namespace
}  // namespace selfcal
