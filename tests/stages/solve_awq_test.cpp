// AWQ's parts: candidates, losses, folding, the clip search, and mean magnitudes.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "stages/calibrate/hessian.hpp"
#include "stages/calibrate/magnitudes.hpp"
#include "stages/solve/awq.hpp"
#include "stages/solve/solve_problem.hpp"
#include "storage/tensor_file.hpp"
#include "tests/stages/solve_support.hpp"

namespace selfcal {
namespace {

using namespace testing_support;

MethodSettings awq(int bits = 3, bool clip = false) {
  MethodSettings settings;
  settings.name = MethodName::awq;
  settings.bits = bits;
  settings.group_size = 16;
  settings.symmetric = false;
  settings.act_order = ActOrder::none;
  settings.clip = clip;
  return settings;
}

/// Inputs a few columns of which are much larger than the others.
Problem uneven_problem(int seed, int64_t rows, int64_t columns) {
  Problem problem = random_problem(seed, rows, columns);
  at::Tensor size = at::ones({columns});
  for (int64_t j = 0; j < columns; j += 13) size[j] = 30;
  problem.hessian = (problem.hessian * size.unsqueeze(1) * size).contiguous();
  return problem;
}

TEST(Awq, FirstCandidateIsNoScaleAndItsLossIsThatOfNearest) {
  const Problem problem = uneven_problem(1, 70, 64);
  const at::Tensor magnitude = problem.hessian.diag().sqrt();
  MethodSettings settings = awq();
  const at::Tensor scales = candidate_scales({problem.weight}, magnitude, settings);
  EXPECT_EQ(scales.size(0), 21);
  EXPECT_TRUE(scales[0].eq(1).all().item<bool>());
  EXPECT_TRUE(scales.isfinite().logical_and(scales.gt(0)).all().item<bool>());
  Threads threads(2);
  const at::Tensor losses =
      losses_of_scales(problem.weight, problem.hessian, scales, settings, threads.context());
  settings.name = MethodName::nearest;
  const MeasuredRows nearest = solve(problem, settings);
  EXPECT_TRUE(same_bits(losses.select(1, 0).contiguous(), nearest.error));
  EXPECT_LT(losses.sum(0).min().item<double>(), 0.7 * nearest.error.sum().item<double>());
  settings.duo_scaling = false;
  EXPECT_EQ(candidate_scales({problem.weight}, magnitude, settings).size(0), 20);
}

TEST(Awq, LossesAreThoseOfTheFoldedWeights) {
  const Problem problem = uneven_problem(2, 40, 64);
  Threads threads(1);
  MethodSettings settings = awq();
  const at::Tensor scales =
      candidate_scales({problem.weight}, problem.hessian.diag().sqrt(), settings);
  const at::Tensor losses =
      losses_of_scales(problem.weight, problem.hessian, scales, settings, threads.context());
  const at::Tensor s = scales[7];
  const Problem folded{problem.weight * s, (problem.hessian / s.unsqueeze(1) / s).contiguous()};
  const MeasuredRows solved = solve(folded, settings);
  EXPECT_NEAR(losses.select(1, 7).sum().item<double>() / solved.error.sum().item<double>(), 1,
              1e-3);
}

/// round_columns of tile [columns, 32] as one group.
at::Tensor rounded_group(const lanes::Kernels& kernels, const lanes::Grid& grid,
                         const at::Tensor& tile) {
  at::Tensor weight = tile.clone(), codes = at::empty_like(tile), scale = at::empty({lanes::rows}),
             zero = at::empty({lanes::rows});
  const std::vector<int32_t> group(static_cast<size_t>(tile.size(0)));
  kernels.find_scale(grid, tile.const_data_ptr<float>(), tile.size(0),
                     scale.mutable_data_ptr<float>(), zero.mutable_data_ptr<float>());
  kernels.round_columns(grid, weight.mutable_data_ptr<float>(), tile.size(0), group.data(),
                        scale.const_data_ptr<float>(), zero.const_data_ptr<float>(),
                        codes.mutable_data_ptr<float>());
  return weight;
}

TEST(Awq, ErrorsOfAGroupAreThoseOfItsRounding) {
  at::manual_seed(11);
  const auto sets = lanes::available_kernels();
  for (int64_t i = 0; i < sets.count; ++i)
    for (const bool symmetric : {true, false})
      for (const lanes::Format format : {lanes::Format::float32, lanes::Format::bfloat16}) {
        const lanes::Kernels& kernels = *sets.first[i];
        const lanes::Grid grid{
            .largest_code = 7, .symmetric = symmetric, .scale = format, .weight = format};
        const at::Tensor tile = at::randn({24, lanes::rows}), factors = at::exp2(at::randn({24})),
                         limits = 2 * at::rand({lanes::rows});
        at::Tensor errors = at::empty_like(tile);
        kernels.errors_of_scaled(grid, tile.const_data_ptr<float>(), 24,
                                 factors.const_data_ptr<float>(), errors.mutable_data_ptr<float>());
        const at::Tensor scale = factors.unsqueeze(1);
        EXPECT_TRUE(at::equal(errors, rounded_group(kernels, grid, tile * scale) / scale - tile));
        kernels.errors_of_cut(grid, tile.const_data_ptr<float>(), 24,
                              limits.const_data_ptr<float>(), errors.mutable_data_ptr<float>());
        const at::Tensor cut = at::max(at::min(tile, limits), -limits);
        EXPECT_TRUE(at::equal(errors, rounded_group(kernels, grid, cut) - tile));
      }
}

TEST(Awq, RowsAreIndependentOfEachOtherAndOfThreads) {
  const Problem problem = uneven_problem(3, 150, 64);
  const at::Tensor scales =
      candidate_scales({problem.weight}, problem.hessian.diag().sqrt(), awq());
  Threads one(1), four(4);
  const at::Tensor whole =
      losses_of_scales(problem.weight, problem.hessian, scales, awq(), one.context());
  for (const int64_t first : {0, 37, 149}) {
    const at::Tensor rows = problem.weight.narrow(0, first, 150 - first);
    EXPECT_TRUE(same_bits(losses_of_scales(rows, problem.hessian, scales, awq(), four.context()),
                          whole.narrow(0, first, 150 - first).contiguous()));
  }
}

TEST(Awq, DeadAndHugeInputsGiveUsableScales) {
  const Problem problem = random_problem(4, 20, 64);
  at::Tensor magnitude = at::ones({64});
  magnitude[0] = 0;
  magnitude[1] = 1e30;
  magnitude[2] = 1e-38;
  for (const bool duo : {true, false}) {
    MethodSettings settings = awq();
    settings.duo_scaling = duo;
    const at::Tensor scales =
        candidate_scales({problem.weight, at::zeros({3, 64})}, magnitude, settings);
    EXPECT_TRUE(scales.isfinite().logical_and(scales.gt(0)).all().item<bool>());
  }
}

TEST(Awq, SearchTriesFewCandidatesOnAllRowsAndFindsTheBest) {
  const Problem problem = uneven_problem(6, 1024, 64);
  Threads threads(2);
  const at::Tensor candidates =
      candidate_scales({problem.weight}, problem.hessian.diag().sqrt(), awq());
  int64_t rows_tried = 0;
  const auto losses = [&](const at::Tensor& scales, int64_t row_step) {
    const at::Tensor rows = problem.weight.slice(0, 0, 1024, row_step);
    rows_tried += rows.size(0) * scales.size(0);
    return losses_of_scales(rows, problem.hessian, scales, awq(), threads.context()).sum(0);
  };
  const at::Tensor all = losses(candidates, 1);
  const at::Tensor best = candidates[all.argmin().item<int64_t>()];
  rows_tried = 0;
  EXPECT_TRUE(same_bits(search_scale(candidates, row_step({problem.weight}), losses), best));
  EXPECT_LT(rows_tried, 1024 * candidates.size(0) / 2);
  EXPECT_TRUE(same_bits(search_scale(candidates, 1, losses), best));
  EXPECT_EQ(row_step({problem.weight, problem.weight.narrow(0, 0, 100)}), 1);  // no rows to spare
}

TEST(Awq, HessianOfScaledInputsIsThatOfTheInputsScaled) {
  at::manual_seed(4);
  const at::Tensor x = at::randn({300, 40}, at::kDouble), scale = at::exp2(at::randn({40}));
  const at::Tensor y = x / scale;
  const at::Tensor scaled = hessian_of_scaled(x.t().mm(x).to(at::kFloat), scale);
  EXPECT_TRUE(at::allclose(scaled.to(at::kDouble), y.t().mm(y), 1e-4, 1e-3));
  EXPECT_TRUE(same_bits(scaled, scaled.t().contiguous()));
}

/// The published quantiser of AWQ: asymmetric groups of `size` columns, in float64.
at::Tensor published_rounding(const at::Tensor& weight, int bits, int64_t size) {
  const at::Tensor groups = weight.reshape({-1, size});
  const double largest = (1 << bits) - 1;
  const at::Tensor high = groups.amax(1, true), low = groups.amin(1, true);
  const at::Tensor step = (high - low).clamp_min(1e-5) / largest;
  const at::Tensor zero = (-(low / step).round()).clamp(0, largest);
  return (((groups / step).round() + zero).clamp(0, largest) - zero).mul(step).view(weight.sizes());
}

/// The least loss of the published search over x^r (llm-awq) and x^r / w^(1 - r) (AutoAWQ), without
/// clipping.
double published_loss(const Problem& problem, int bits, int64_t size) {
  const at::Tensor weight = problem.weight.to(at::kDouble),
                   hessian = problem.hessian.to(at::kDouble), x = hessian.diag().sqrt();
  const at::Tensor groups = weight.abs().view({weight.size(0), -1, size});
  const at::Tensor w = (groups / (groups.amax(2, true) + 1e-6)).view(weight.sizes()).mean(0);
  double best = std::numeric_limits<double>::infinity();
  for (const bool duo : {false, true}) {
    for (int i = 0; i < 20; ++i) {
      const double r = i / 20.0;
      at::Tensor s = duo ? x.pow(r) / (w.pow(1 - r) + 1e-4) : x.pow(r);
      s = s.clamp_min(1e-4);
      s = s / (s.max() * s.min()).sqrt();
      const at::Tensor error = published_rounding(weight * s, bits, size) / s - weight;
      best = std::min(best, error.mm(hessian).mul(error).sum().item<double>());
    }
  }
  return best;
}

TEST(Awq, SolveFindsScalesNoWorseThanThePublishedSearch) {
  namespace fs = std::filesystem;
  const fs::path problem_path = SELFCAL_TEST_DATA "/solvers/k_proj.safetensors",
                 out = fs::path(testing::TempDir()) / "awq_solved.safetensors";
  const TensorFile file(problem_path);
  const Problem problem{file.read("weight"), file.read("hessian")};
  Threads threads(2);
  for (const int bits : {3, 4}) {
    SolveProblem options{problem_path, out, awq(bits), at::kFloat};
    options.method.group_size = 64;
    const auto loss = [&](bool clip) {
      options.method.clip = clip;
      const auto line = nlohmann::json::parse(solve_problem(options, threads.context()));
      const TensorFile solved(out);
      const at::Tensor weight = solved.read("weight"), scale = solved.read("input_scale");
      // The weight that is written is the codes' behind the scale, and the errors are its own.
      const at::Tensor group = at::arange(weight.size(1), at::kLong).floor_divide(64);
      const at::Tensor step = solved.read("scales").to(at::kFloat).index_select(1, group),
                       zero = solved.read("zeros").to(at::kFloat).index_select(1, group);
      const at::Tensor rounded = (solved.read("codes").to(at::kFloat) - zero) * step / scale;
      EXPECT_TRUE(at::allclose(weight, rounded, 1e-5, 1e-7));
      EXPECT_NEAR(line["relative_error"].get<double>() / relative_error(problem, weight), 1, 1e-3);
      EXPECT_LT(line["relative_error"], line["nearest_relative_error"]);
      return line["loss"].get<double>();
    };
    const double plain = loss(false), published = published_loss(problem, bits, 64);
    EXPECT_LE(plain, published * 1.001);
    EXPECT_LT(loss(true), plain);
    RecordProperty("loss_over_published_" + std::to_string(bits),
                   std::to_string(plain / published));
  }
  fs::remove(out);
}

/// `selfcal solve` with AWQ on a problem.
class AwqProblem : public testing::Test {
 protected:
  nlohmann::json solve_awq(const Problem& problem) {
    write_tensor_file(options_.problem, {{"weight", problem.weight}, {"hessian", problem.hessian}});
    const auto line = nlohmann::json::parse(solve_problem(options_, threads_.context()));
    const TensorFile solved(options_.out);
    for (const char* name : {"weight", "input_scale", "scales"})
      EXPECT_TRUE(solved.read(name).isfinite().all().item<bool>()) << name;
    return line;
  }
  void refused(const Problem& problem, const std::string& text) {
    expect_failure(ExitCode::data, text, [&] { solve_awq(problem); });
  }
  void TearDown() override {
    std::filesystem::remove(options_.problem);
    std::filesystem::remove(options_.out);
  }

  Threads threads_{2};
  SolveProblem options_{testing::TempDir() + "/awq_problem.safetensors",
                        testing::TempDir() + "/awq_answer.safetensors", awq(3, true), at::kFloat};
};

TEST_F(AwqProblem, OfAnySizeIsSolved) {
  const Problem problem = uneven_problem(7, 48, 64);
  const double expected = solve_awq(problem)["relative_error"];
  for (const auto& [weights, inputs] :
       {std::pair{-60.0, 0.0}, {40.0, 0.0}, {0.0, -90.0}, {0.0, 60.0}})
    EXPECT_NEAR(solve_awq({problem.weight * std::exp2(weights),
                           problem.hessian * std::exp2(inputs)})["relative_error"]
                        .get<double>() /
                    expected,
                1, 1e-2)
        << weights << " " << inputs;
  // What is denormal loses digits, no more.
  solve_awq({problem.weight * 1e-40, problem.hessian});
  solve_awq({problem.weight, problem.hessian * 1e-42});
  EXPECT_EQ(solve_awq({at::zeros({48, 64}), problem.hessian})["loss"], 0);
  EXPECT_EQ(solve_awq({problem.weight, at::zeros({64, 64})})["loss"], 0);
}

TEST_F(AwqProblem, WhatCannotBeSolvedIsRefused) {
  const Problem problem = uneven_problem(8, 48, 64);
  refused({problem.weight * NAN, problem.hessian}, "weight not finite");
  refused({problem.weight, problem.hessian * NAN}, "Hessian not finite");
  refused({problem.weight, -problem.hessian}, "not positive definite");
  refused({problem.weight * 1e25, problem.hessian * 1e20}, "too large");
}

TEST(Awq, SolveRefusesWhatDoesNotFit) {
  Threads threads(1);
  SolveProblem options{SELFCAL_TEST_DATA "/solvers/k_proj.safetensors",
                       testing::TempDir() + "/awq_refused.safetensors", awq(), at::kFloat};
  options.method.group_size = 100;
  try {
    solve_problem(options, threads.context());
    FAIL() << "576 columns in groups of 100";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::data);
    EXPECT_NE(std::string(error.what()).find("100 does not divide the 576"), std::string::npos);
  }
}

TEST(Awq, FoldingChangesNothingThatIsComputed) {
  at::manual_seed(1);
  const at::Tensor scale = at::exp2(at::randn({8}));
  for (const double offset : {0.0, 1.0}) {
    BlockWeights weights{{"norm.weight", at::randn({8})},
                         {"norm.bias", at::randn({8})},
                         {"q.weight", at::randn({5, 8})},
                         {"k.weight", at::randn({3, 8})}};
    const at::Tensor x = at::randn({7, 8});
    const auto output = [&](const char* name) {
      const at::Tensor normed = x * (offset + weights.at("norm.weight")) + weights.at("norm.bias");
      return normed.mm(weights.at(std::string(name) + ".weight").t());
    };
    const at::Tensor q = output("q"), k = output("k");
    const ScalePair pair{"norm", {"q", "k"}, "attention", offset};
    fold_scale(weights, pair, scale);
    EXPECT_TRUE(at::allclose(output("q"), q, 1e-4, 1e-5));
    EXPECT_TRUE(at::allclose(output("k"), k, 1e-4, 1e-5));
    EXPECT_EQ(folded_tensors(weights, pair),
              (std::vector<std::string>{"norm.weight", "norm.bias", "q.weight", "k.weight"}));
  }
  // The last rows of a producer that makes more than its consumer reads.
  BlockWeights weights{{"gate_up.weight", at::randn({16, 4})}, {"down.weight", at::randn({6, 8})}};
  const at::Tensor before = weights.at("gate_up.weight").clone();
  const at::Tensor product = weights.at("down.weight").mm(before.narrow(0, 8, 8));
  fold_scale(weights, {"gate_up", {"down"}, "down", 0}, scale);
  const at::Tensor after = weights.at("gate_up.weight");
  EXPECT_TRUE(same_bits(after.narrow(0, 0, 8).contiguous(), before.narrow(0, 0, 8).contiguous()));
  EXPECT_TRUE(
      at::allclose(weights.at("down.weight").mm(after.narrow(0, 8, 8)), product, 1e-4, 1e-5));
}

TEST(Clip, IsNeverWorseWithinAGroupAndHelpsWithOutliers) {
  Problem problem = random_problem(5, 60, 64);
  for (int64_t row = 0; row < 60; ++row) problem.weight[row][row % 64] = 0.4;
  // Only the diagonal blocks of the groups, which is what the search looks at.
  at::Tensor blocks = at::zeros({64, 64});
  for (int64_t g = 0; g < 64; g += 16) blocks.narrow(0, g, 16).narrow(1, g, 16).fill_(1);
  problem.hessian = (problem.hessian * blocks).contiguous();
  for (const bool symmetric : {true, false}) {
    MethodSettings settings = awq(3, true);
    settings.symmetric = symmetric;
    const MeasuredRows clipped = solve(problem, settings, 2);
    EXPECT_TRUE(clipped.error.le(clipped.nearest_error * 1.0001).all().item<bool>());
    EXPECT_LT(clipped.error.sum().item<double>(),
              0.98 * clipped.nearest_error.sum().item<double>());
    EXPECT_TRUE(same_bits(solve(problem, settings, 4).linear.weight, clipped.linear.weight));
  }
}

TEST(Magnitudes, AreTheSameInAnyOrderAndRight) {
  at::manual_seed(3);
  std::vector<at::Tensor> leaves;
  for (int i = 0; i < 5; ++i)
    leaves.push_back((at::randn({200, 70}) * at::exp2(8 * at::randn({1, 70}))).to(at::kBFloat16));
  HessianAccumulator hessian(70, {});
  for (const auto& leaf : leaves) hessian.observe(leaf);
  const auto measure = [&](bool reversed) {
    MagnitudeAccumulator sums(hessian.exponents(), {});
    for (size_t i = 0; i < leaves.size(); ++i)
      sums.add(leaves[reversed ? leaves.size() - 1 - i : i]);
    return sums.finish(1000);
  };
  EXPECT_TRUE(same_bits(measure(false), measure(true)));
  const at::Tensor expected = at::cat(leaves).to(at::kDouble).abs().mean(0);
  EXPECT_TRUE(at::allclose(measure(false).to(at::kDouble), expected, 1e-6));
}

}  // namespace
}  // namespace selfcal
