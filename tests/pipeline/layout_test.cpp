// Layouts of 1 to 8 ranks in every mode: each rank, layer, leaf and micro-batch has its place.
#include "pipeline/layout.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/error.hpp"

namespace selfcal {
namespace {

using Mode = LayoutSettings::Mode;
using Ranks = std::vector<int>;

LayoutSettings settings_of(Mode mode, int shards = 0, int team = 0, int replicas = 0) {
  LayoutSettings settings;
  settings.mode = mode;
  settings.shards = shards;
  settings.team = team;
  settings.replicas = replicas;
  return settings;
}

Layout layout_of(const LayoutSettings& settings, int ranks, int layers = 30) {
  return Layout(settings, ranks, std::vector<double>(static_cast<size_t>(layers), 1.0));
}

std::string error_of(const LayoutSettings& settings, int ranks, int layers = 30) {
  try {
    layout_of(settings, ranks, layers);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

void expect_whole(const Layout& layout, int ranks, int layers) {
  Ranks members;
  for (int shard = 0; shard < layout.shards(); ++shard) {
    EXPECT_LT(layout.first_layer(shard), layout.first_layer(shard + 1));
    const auto& team = layout.team_of(shard);
    ASSERT_FALSE(team.empty());
    members.insert(members.end(), team.begin(), team.end());
    for (const int rank : team) EXPECT_EQ(layout.shard_of(rank), shard);
    for (int64_t leaf = 0; leaf < 9; ++leaf)
      EXPECT_EQ(layout.owner(leaf, shard), team[static_cast<size_t>(leaf) % team.size()]);
  }
  std::sort(members.begin(), members.end());
  Ranks all(static_cast<size_t>(ranks));
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(members, all) << "every rank serves one shard in the end";
  EXPECT_EQ(layout.first_layer(0), 0);
  EXPECT_EQ(layout.first_layer(layout.shards()), layers);
  const auto& generators = layout.generators();
  ASSERT_FALSE(generators.empty());
  for (size_t i = 1; i < generators.size(); ++i) EXPECT_EQ(generators[i], generators[i - 1] + 1);
  EXPECT_LT(generators.back(), ranks);
  if (layout.split()) {
    EXPECT_EQ(generators.back(), ranks - 1);
  }
  const Leaf leaf{.micro_batch = static_cast<int64_t>(generators.size())};
  EXPECT_EQ(layout.forwarder_of(leaf), generators.front());
  EXPECT_FALSE(layout.describe().empty());
}

TEST(Layout, CountsLeftToThePlanFitAnyNumberOfRanks) {
  for (int ranks = 1; ranks <= 8; ++ranks)
    for (const Mode mode : {Mode::automatic, Mode::split, Mode::shared})
      for (int shards = 0; shards <= ranks; ++shards) {
        SCOPED_TRACE(fmt::format("{} ranks, mode {}, {} shards", ranks, to_text(mode), shards));
        const Layout layout = layout_of(settings_of(mode, shards), ranks);
        expect_whole(layout, ranks, 30);
        EXPECT_EQ(layout.shards(), std::max(1, shards));
        EXPECT_EQ(layout.split(), mode == Mode::split && ranks > std::max(1, shards));
      }
}

TEST(Layout, SplitLeavesHalfOfTheRanksToSampling) {
  const std::vector<Ranks> expected{{0}, {1}, {2}, {2, 3}, {3, 4}, {3, 4, 5}};
  for (int ranks = 1; ranks <= 6; ++ranks)
    EXPECT_EQ(layout_of(settings_of(Mode::split), ranks).generators(),
              expected[static_cast<size_t>(ranks - 1)])
        << ranks;
}

TEST(Layout, GivenCountsAreKept) {
  const Layout layout = layout_of(settings_of(Mode::split, 2, 2, 1), 5);
  EXPECT_EQ(layout.generators(), Ranks{4});
  EXPECT_EQ(layout.team_of(0), (Ranks{0, 1, 4}));
  EXPECT_EQ(layout.team_of(1), (Ranks{2, 3}));
  EXPECT_EQ(layout_of(settings_of(Mode::split, 0, 0, 3), 4).generators(), (Ranks{1, 2, 3}));
  EXPECT_EQ(layout_of(settings_of(Mode::split, 0, 3), 4).generators(), Ranks{3});
  EXPECT_EQ(layout_of(settings_of(Mode::split, 3), 4).generators(), Ranks{3});
  EXPECT_EQ(layout_of(settings_of(Mode::shared, 0, 0, 2), 4).generators(), (Ranks{0, 1}));
}

TEST(Layout, ACopyMayBeSpreadOverRanks) {
  LayoutSettings settings = settings_of(Mode::shared);
  settings.depth = 2;
  const Layout shared = layout_of(settings, 5);
  EXPECT_EQ(shared.generators(), (Ranks{0, 1, 2, 3})) << "the fifth rank has no partner";
  EXPECT_EQ(shared.replicas(), 2);
  for (const int64_t batch : {0, 1, 2})
    for (const int64_t leaf : {0, 1, 2, 3})
      EXPECT_EQ(shared.forwarder_of({.index = leaf, .micro_batch = batch}),
                batch % 2 * 2 + leaf % 2);
  EXPECT_EQ(shared.describe(),
            "4 of 5 ranks generate (2 replicas of depth 2), then all compress (1 shard x 5)");

  settings.mode = Mode::split;
  EXPECT_EQ(layout_of(settings, 3).generators(), (Ranks{1, 2}));
  EXPECT_EQ(layout_of(settings, 6).generators(), (Ranks{4, 5}));
  EXPECT_EQ(layout_of(settings, 8).generators(), (Ranks{4, 5, 6, 7}));
  settings.depth = 3;
  EXPECT_EQ(error_of(settings, 3),
            "layout: 1 generator of depth 3 and 1 shard need 4 ranks, found 3");
  settings.depth = 31;
  EXPECT_EQ(error_of(settings, 40),
            "layout.generators.depth: found 31, but the model has 30 layers");
}

TEST(Layout, EachKindAloneWhileGeneratorsWriteAhead) {
  for (int depth = 1; depth <= 2; ++depth) {
    LayoutSettings settings = settings_of(Mode::split, 2, 0, 2);
    settings.depth = depth;
    const Layout both = layout_of(settings, 5 + 2 * depth);
    const Layout compressors = both.of_compressors(), generators = both.of_generators();
    expect_whole(compressors, 5, 30);
    for (int shard = 0; shard < 2; ++shard) {
      EXPECT_EQ(compressors.first_layer(shard), both.first_layer(shard));
      for (const int rank : compressors.team_of(shard)) EXPECT_EQ(both.shard_of(rank), shard);
    }
    if (depth == 1) expect_whole(generators, 2, 30);
    EXPECT_EQ(generators.ranks(), 2 * depth);
    EXPECT_EQ(generators.replicas(), both.replicas());
    EXPECT_EQ(generators.depth(), depth);
    for (int64_t batch = 0; batch < 5; ++batch)
      EXPECT_EQ(generators.forwarder_of({.index = batch, .micro_batch = batch}) + 5,
                both.forwarder_of({.index = batch, .micro_batch = batch}));
    for (int rank = 0; rank < both.ranks(); ++rank) {
      EXPECT_EQ(both.samples(rank), rank >= 5);
      if (rank < 5)
        EXPECT_FALSE(compressors.samples(rank));
      else
        EXPECT_TRUE(generators.samples(rank - 5));
    }
    EXPECT_EQ(compressors.describe(), "5 compressors (2 shards x 2 or 3), while others generate");
  }
}

TEST(Layout, TwoShardsOfOneRank) {
  const Layout four = layout_of(settings_of(Mode::split, 2, 1), 4);
  EXPECT_EQ(four.generators(), (Ranks{2, 3}));
  EXPECT_EQ(four.team_of(0), (Ranks{0, 2}));
  EXPECT_EQ(four.team_of(1), (Ranks{1, 3}));
  EXPECT_EQ(four.first_layer(1), 15);

  EXPECT_EQ(layout_of(settings_of(Mode::split, 2, 1), 3).generators(), Ranks{2});

  const Layout two = layout_of(settings_of(Mode::split, 2, 1), 2);
  EXPECT_FALSE(two.split()) << "no rank is left to sample alone";
  EXPECT_EQ(two.generators(), (Ranks{0, 1}));

  EXPECT_EQ(error_of(settings_of(Mode::split, 2, 1), 1),
            "layout.compressors: 2 shards of 1 rank need 2 ranks, found 1");
}

TEST(Layout, AutomaticIsSharedUnlessGeneratorsAreAskedFor) {
  const Layout shared = layout_of(settings_of(Mode::automatic), 4);
  EXPECT_FALSE(shared.split());
  EXPECT_EQ(shared.generators(), (Ranks{0, 1, 2, 3}));
  const Layout split = layout_of(settings_of(Mode::automatic, 0, 0, 1), 4);
  EXPECT_TRUE(split.split());
  EXPECT_EQ(split.generators(), Ranks{3});
}

TEST(Layout, ErrorsGiveTheNumbers) {
  EXPECT_EQ(error_of(settings_of(Mode::shared, 3, 2), 4),
            "layout.compressors: 3 shards of 2 ranks need 6 ranks, found 4");
  EXPECT_EQ(error_of(settings_of(Mode::split, 5), 4),
            "layout: 1 generator and 5 shards need 6 ranks, found 4");
  EXPECT_EQ(error_of(settings_of(Mode::split, 2, 1, 3), 4),
            "layout: 3 generators and 2 shards of 1 rank need 5 ranks, found 4");
  EXPECT_EQ(error_of(settings_of(Mode::split, 1, 1, 1), 4),
            "layout: 1 generator and 1 shard of 1 rank leave 2 of 4 ranks without work");
  EXPECT_EQ(error_of(settings_of(Mode::shared, 2, 1), 4),
            "layout.compressors: 2 shards of 1 rank leave 2 of 4 ranks without work");
  EXPECT_EQ(error_of(settings_of(Mode::shared, 0, 0, 5), 4),
            "layout.generators: 5 replicas need 5 ranks, found 4");
  EXPECT_EQ(error_of(settings_of(Mode::shared, 4), 4, 3),
            "layout.compressors.shards: found 4, but the model has 3 layers");
}

TEST(Layout, DescribesItself) {
  EXPECT_EQ(layout_of(settings_of(Mode::split), 1).describe(), "1 rank generates, then compresses");
  EXPECT_EQ(layout_of(settings_of(Mode::split), 4).describe(),
            "2 generators + 2 compressors (1 shard x 2); generators join the compressors when they "
            "are done");
  EXPECT_EQ(layout_of(settings_of(Mode::shared, 2), 3).describe(),
            "3 of 3 ranks generate, then all compress (2 shards x 1 or 2)");
}

TEST(Layout, LayersAreCutByCost) {
  using Firsts = std::vector<int64_t>;
  EXPECT_EQ(cut_by_cost(std::vector<double>(30, 1.0), 1), (Firsts{0, 30}));
  EXPECT_EQ(cut_by_cost(std::vector<double>(3, 1.0), 3), (Firsts{0, 1, 2, 3}));
  EXPECT_EQ(cut_by_cost({3, 1, 1, 1}, 2), (Firsts{0, 1, 4}));
  EXPECT_EQ(cut_by_cost({1, 1, 1, 9}, 2), (Firsts{0, 3, 4}));
  EXPECT_EQ(cut_by_cost({9, 1, 1}, 3), (Firsts{0, 1, 2, 3}));
  for (int shards = 1; shards <= 30; ++shards) {
    const auto first = cut_by_cost(std::vector<double>(30, 0.1), shards);
    for (int shard = 0; shard < shards; ++shard) {
      const auto layers = first[static_cast<size_t>(shard) + 1] - first[static_cast<size_t>(shard)];
      EXPECT_GE(layers, 30 / shards) << shards;
      EXPECT_LE(layers, (30 + shards - 1) / shards) << shards;
    }
  }
}

}  // namespace
}  // namespace selfcal
