// The solvers against a float64 reference, and what must not change their bits.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "stages/solve/solve_problem.hpp"
#include "storage/packing.hpp"
#include "storage/tensor_file.hpp"
#include "tests/stages/solve_support.hpp"

namespace selfcal {
namespace {

using namespace testing_support;

at::Tensor codes_of(const SolvedRows& solved) {
  return unpack_codes(solved.linear.codes, solved.linear.bits, solved.linear.weight.size(1));
}

struct Case {
  const char* name;
  MethodSettings settings;
};

void PrintTo(const Case& value, std::ostream* out) { *out << value.name; }

std::vector<Case> cases() {
  const auto with = [](auto change) {
    MethodSettings settings;
    settings.group_size = 16;
    settings.block_size = 32;
    settings.act_order = ActOrder::none;
    change(settings);
    return settings;
  };
  return {
      {"symmetric", with([](auto& s) {})},
      {"asymmetric", with([](auto& s) { s.symmetric = false; })},
      {"whole_rows", with([](auto& s) { s.group_size = -1; })},
      {"ragged_groups", with([](auto& s) { s.group_size = 48; })},
      {"two_bits", with([](auto& s) { s.bits = 2, s.symmetric = false; })},
      {"five_bits", with([](auto& s) { s.bits = 5, s.mse = AutoFlag::yes; })},
      {"six_bits", with([](auto& s) { s.bits = 6, s.symmetric = false; })},
      {"seven_bits", with([](auto& s) { s.bits = 7, s.group_size = -1; })},
      {"eight_bits", with([](auto& s) { s.bits = 8; })},
      {"static_order", with([](auto& s) { s.act_order = ActOrder::static_order; })},
      {"dynamic_order", with([](auto& s) {
         s.act_order = ActOrder::dynamic_order, s.static_groups = AutoFlag::no;
       })},
      {"dynamic_groups", with([](auto& s) { s.static_groups = AutoFlag::no; })},
      {"dynamic_groups_beyond_blocks",
       with([](auto& s) { s.static_groups = AutoFlag::no, s.group_size = 32, s.block_size = 16; })},
      {"published_groups", with([](auto& s) {
         s.static_groups = AutoFlag::no, s.group_parameters = GroupParameters::published;
       })},
      {"published_groups_across_blocks", with([](auto& s) {
         s.static_groups = AutoFlag::no, s.group_size = 24,
         s.group_parameters = GroupParameters::published;
       })},
      {"one_block", with([](auto& s) { s.block_size = 4096; })},
      {"odd_blocks", with([](auto& s) { s.block_size = 7; })},
      {"search", with([](auto& s) { s.mse = AutoFlag::yes, s.bits = 3; })},
      {"search_whole_rows",
       with([](auto& s) { s.mse = AutoFlag::yes, s.group_size = -1, s.symmetric = false; })},
      {"strong_damping", with([](auto& s) { s.damping = 0.5; })},
  };
}

class Reference : public testing::TestWithParam<Case> {};

TEST_P(Reference, AgreesWithFloat64) {
  const MethodSettings& settings = GetParam().settings;
  for (const auto& [rows, columns] : {std::pair{40, 64}, std::pair{5, 100}, std::pair{70, 33}}) {
    const Problem problem = random_problem(int(rows), rows, columns);
    const MeasuredRows solved = solve(problem, settings, 2);
    const ReferenceRows expected = reference(problem, settings);
    // A weight half-way between two codes may go either way, and the rest of its row follows.
    EXPECT_GE(share_equal(codes_of(solved), expected.codes), 0.99) << rows << "x" << columns;
    EXPECT_NEAR((solved.error.sum() / solved.reference.sum()).item<double>() /
                    relative_error(problem, solved.linear.weight),
                1, 1e-4);
    EXPECT_EQ(solved.linear.g_idx.defined(), settings.act_order == ActOrder::dynamic_order);
  }
}

/// Over enough rows that the few which fell to the other side of a tie do not count.
TEST_P(Reference, ErrsLikeFloat64) {
  const MethodSettings& settings = GetParam().settings;
  const Problem problem = random_problem(9, 400, 64);
  EXPECT_NEAR(relative_error(problem, solve(problem, settings, 2).linear.weight) /
                  relative_error(problem, reference(problem, settings).weight),
              1, 1e-3);
}

/// Of a float32 model, and of a bfloat16 model, whose products between blocks are others.
class RowsApart : public testing::TestWithParam<std::tuple<Case, at::ScalarType>> {};

TEST_P(RowsApart, IsTheSameForAnyRowsAndThreads) {
  const auto& [chosen, dtype] = GetParam();
  const MethodSettings& settings = chosen.settings;
  const Problem problem = random_problem(3, 150, 80);
  const MeasuredRows whole = solve(problem, settings, 1, dtype);
  for (const int threads : {2, 4}) {
    const MeasuredRows other = solve(problem, settings, threads, dtype);
    EXPECT_TRUE(same_bits(other.linear.weight, whole.linear.weight));
    EXPECT_TRUE(same_bits(other.error, whole.error));
  }
  for (const int parts : {2, 3, 4}) {
    for (int part = 0; part < parts; ++part) {
      const int64_t first = 150 * part / parts, count = 150 * (part + 1) / parts - first;
      const MeasuredRows some =
          solve({problem.weight.narrow(0, first, count), problem.hessian}, settings, 2, dtype);
      const auto equal = [&](const at::Tensor& of_some, const at::Tensor& of_whole) {
        EXPECT_TRUE(same_bits(of_some, of_whole.narrow(0, first, count).contiguous()))
            << parts << " parts";
      };
      equal(some.linear.weight, whole.linear.weight);
      equal(some.linear.codes, whole.linear.codes);
      equal(some.linear.scale, whole.linear.scale);
      equal(some.linear.zero, whole.linear.zero);
      equal(some.error, whole.error);
      equal(some.nearest_error, whole.nearest_error);
      equal(some.reference, whole.reference);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, Reference, testing::ValuesIn(cases()),
                         [](const auto& value) { return value.param.name; });
INSTANTIATE_TEST_SUITE_P(Settings, RowsApart,
                         testing::Combine(testing::ValuesIn(cases()),
                                          testing::Values(at::kFloat, at::kBFloat16)),
                         [](const auto& value) {
                           return fmt::format("{}_{}", std::get<0>(value.param).name,
                                              toString(std::get<1>(value.param)));
                         });

TEST_P(Reference, OfADiagonalHessianIsNearest) {
  Problem problem = random_problem(1, 50, 96);
  problem.hessian = at::diag(problem.hessian.diag()).contiguous();
  MethodSettings settings = GetParam().settings;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const MeasuredRows solved = solve(problem, settings, 1, dtype);
    MethodSettings data_free = settings;
    data_free.name = MethodName::nearest;
    // Groups by position are groups of the columns in their order.
    const bool by_position = solved.linear.g_idx.defined();
    const at::Tensor order =
        by_position ? std::get<1>(at::sort(problem.hessian.diag(), /*stable=*/true, 0, true))
                    : at::arange(96, at::kLong);
    const MeasuredRows nearest =
        solve({problem.weight.index_select(1, order).contiguous(),
               at::diag(problem.hessian.diag().index_select(0, order)).contiguous()},
              data_free, 1, dtype);
    const auto in_order = [&](const at::Tensor& t) { return t.index_select(1, order); };
    EXPECT_TRUE(same_bits(in_order(codes_of(solved)), codes_of(nearest)));
    EXPECT_TRUE(same_bits(in_order(solved.linear.weight), nearest.linear.weight));
    EXPECT_TRUE(same_bits(solved.linear.scale, nearest.linear.scale));
    EXPECT_TRUE(same_bits(nearest.error, nearest.nearest_error));
  }
}

TEST(Solve, IsBetterThanNearest) {
  const Problem problem = random_problem(2, 64, 128);
  const MeasuredRows solved = solve(problem, {});
  EXPECT_LT(solved.error.sum().item<double>(), 0.8 * solved.nearest_error.sum().item<double>());
}

TEST(Solve, RoundedScalesAndWeightsAreWhatIsMeasured) {
  const Problem problem = random_problem(4, 40, 96);
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    MethodSettings settings;
    settings.group_size = 32;
    settings.symmetric = false;
    settings.scale_dtype = dtype;
    const MeasuredRows solved = solve(problem, settings, 1, dtype);
    EXPECT_EQ(solved.linear.scale.scalar_type(), dtype);
    EXPECT_TRUE(same_bits(dequantise(solved.linear, 96, dtype, "w"), solved.linear.weight))
        << toString(dtype);
    EXPECT_NEAR((solved.error.sum() / solved.reference.sum()).item<double>() /
                    relative_error(problem, solved.linear.weight),
                1, 1e-4);
  }
}

TEST(Solve, DeadColumnsAreZeroAndDoNotMatter) {
  Problem problem = random_problem(5, 40, 64);
  for (const int64_t dead : {3, 40, 63}) {
    problem.hessian.select(0, dead).zero_();
    problem.hessian.select(1, dead).zero_();
  }
  MethodSettings settings;
  settings.group_size = 16;
  for (const auto order : {ActOrder::none, ActOrder::static_order}) {
    settings.act_order = order;
    const MeasuredRows solved = solve(problem, settings);
    EXPECT_EQ(solved.linear.dead_columns, 3);
    EXPECT_EQ(solved.linear.weight.select(1, 40).abs().max().item<float>(), 0);
    Problem changed = problem;
    changed.weight = problem.weight.clone();
    changed.weight.select(1, 40).fill_(7);
    EXPECT_TRUE(same_bits(solve(changed, settings).linear.weight, solved.linear.weight));
  }
}

TEST(Solve, RowsOfZerosAndOfOneSign) {
  Problem problem = random_problem(6, 40, 64);
  problem.weight.select(0, 0).zero_();
  problem.weight.select(0, 1).abs_();
  problem.weight.select(0, 2).abs_().neg_();
  for (const bool symmetric : {true, false}) {
    MethodSettings settings;
    settings.group_size = -1;
    settings.symmetric = symmetric;
    settings.act_order = ActOrder::none;
    const MeasuredRows solved = solve(problem, settings);
    EXPECT_EQ(solved.linear.weight[0].abs().max().item<float>(), 0);
    EXPECT_TRUE(same_bits(codes_of(solved).narrow(0, 0, 3).contiguous(),
                          reference(problem, settings).codes.narrow(0, 0, 3).contiguous()));
  }
}

TEST(Solve, ExtremeWeightsAndHessians) {
  const Problem problem = random_problem(7, 20, 64);
  MethodSettings settings;
  settings.group_size = 32;
  const MeasuredRows expected = solve(problem, settings);
  // Powers of two change nothing but the scale.
  for (const double power : {-100.0, 60.0}) {
    const MeasuredRows scaled =
        solve({problem.weight * std::exp2(power), problem.hessian}, settings);
    EXPECT_TRUE(same_bits(scaled.linear.codes, expected.linear.codes)) << power;
  }
  for (const double power : {-100.0, 100.0}) {
    const MeasuredRows scaled =
        solve({problem.weight, problem.hessian * std::exp2(power)}, settings);
    EXPECT_TRUE(same_bits(scaled.linear.codes, expected.linear.codes)) << power;
  }
  // Denormal weights and Hessians lose digits, no more.
  EXPECT_TRUE(solve({problem.weight * 1e-40, problem.hessian}, settings)
                  .linear.weight.isfinite()
                  .all()
                  .item<bool>());
  EXPECT_TRUE(solve({problem.weight, problem.hessian * 1e-40}, settings)
                  .linear.weight.isfinite()
                  .all()
                  .item<bool>());
  settings.scale_dtype = at::kHalf;
  EXPECT_TRUE(solve({problem.weight * 1e-9, problem.hessian}, settings)
                  .linear.weight.isfinite()
                  .all()
                  .item<bool>());
  const auto refused = [&](const Problem& bad, const std::string& text) {
    expect_failure(ExitCode::data, text, [&] { solve(bad, settings, 2); });
  };
  refused({problem.weight * 1e8, problem.hessian}, "overflows Half");
  refused({problem.weight, problem.hessian * NAN}, "Hessian not finite");
  refused({problem.weight * INFINITY, problem.hessian}, "weight not finite");
  refused({problem.weight, -problem.hessian}, "not positive definite");
  settings.scale_dtype = at::kFloat;
  refused({problem.weight * 1e39, problem.hessian}, "weight not finite");
  refused({problem.weight * 3e38, problem.hessian}, "too large");
  refused({problem.weight * 1e25, problem.hessian * 1e20}, "overflows float32");
}

TEST(Solve, AZeroHessianGivesZeros) {
  const Problem problem{random_problem(8, 10, 32).weight, at::zeros({32, 32})};
  const MeasuredRows solved = solve(problem, {});
  EXPECT_EQ(solved.linear.weight.abs().max().item<float>(), 0);
  EXPECT_EQ(solved.linear.dead_columns, 32);
}

TEST(Solve, RefusesSettingsOutOfRange) {
  const auto refused = [](const std::string& text, auto change) {
    MethodSettings settings;
    change(settings);
    expect_failure(ExitCode::config, text, [&] { make_method(settings, {}); });
  };
  refused("bits is 1, expected 2 to 8", [](auto& s) { s.bits = 1; });
  refused("bits is 9", [](auto& s) { s.bits = 9; });
  refused("group_size is 0", [](auto& s) { s.group_size = 0; });
  refused("block_size is 0", [](auto& s) { s.block_size = 0; });
  refused("damping is -1", [](auto& s) { s.damping = -1; });
  refused("damping is nan", [](auto& s) { s.damping = NAN; });
  refused("scale_dtype is Double", [](auto& s) { s.scale_dtype = at::kDouble; });
}

class SolveProblemTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("selfcal_solve_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    options_ = {folder_ / "problem.safetensors", folder_ / "out.safetensors", {}, at::kFloat};
    options_.method.group_size = 32;
  }
  void TearDown() override { fs::remove_all(folder_); }

  void refused(const NamedTensors& tensors, const std::string& text) {
    write_tensor_file(options_.problem, tensors);
    expect_failure(ExitCode::data, text, [&] { solve_problem(options_, threads_.context()); });
    expect_failure(ExitCode::data, options_.problem.string(),
                   [&] { solve_problem(options_, threads_.context()); });
    EXPECT_FALSE(fs::exists(options_.out));
  }

  fs::path folder_;
  SolveProblem options_;
  Threads threads_{1};
};

TEST_F(SolveProblemTest, WritesWhatItSolved) {
  const Problem problem = random_problem(9, 24, 64);
  write_tensor_file(options_.problem, {{"weight", problem.weight}, {"hessian", problem.hessian}});
  for (const auto order : {ActOrder::static_order, ActOrder::dynamic_order}) {
    options_.method.act_order = order;
    const auto report = nlohmann::json::parse(solve_problem(options_, threads_.context()));
    const MeasuredRows solved = solve(problem, options_.method);
    const TensorFile out(options_.out);
    EXPECT_TRUE(same_bits(out.read("weight"), solved.linear.weight));
    EXPECT_TRUE(same_bits(out.read("codes"), codes_of(solved)));
    EXPECT_TRUE(same_bits(out.read("scales"), solved.linear.scale));
    EXPECT_TRUE(same_bits(out.read("zeros"), solved.linear.zero));
    EXPECT_EQ(out.contains("g_idx"), order == ActOrder::dynamic_order);
    EXPECT_NEAR(
        report["relative_error"].get<double>() / relative_error(problem, out.read("weight")), 1,
        1e-4);
    EXPECT_EQ(report["damping"].get<double>(), 0.01);
  }
}

TEST_F(SolveProblemTest, RefusesBadFiles) {
  const Problem problem = random_problem(9, 24, 64);
  refused({{"weight", problem.weight}}, "no tensor 'hessian'");
  refused({{"weight", problem.weight[0].clone()}, {"hessian", problem.hessian}},
          "expected a floating-point matrix");
  refused({{"weight", problem.weight}, {"hessian", random_problem(1, 2, 63).hessian}},
          "expected [64, 64]");
  refused({{"weight", problem.weight}, {"hessian", problem.hessian * NAN}}, "Hessian not finite");
  refused({{"weight", problem.weight * NAN}, {"hessian", problem.hessian}}, "weight not finite");
  at::Tensor crooked = problem.hessian.clone();
  crooked[0][5] += 100;
  refused({{"weight", problem.weight}, {"hessian", crooked}}, "not symmetric");
}

}  // namespace
}  // namespace selfcal
