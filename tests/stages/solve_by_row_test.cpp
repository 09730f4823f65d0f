// The row arithmetic that the CUDA kernels share with their CPU twin: the twin against the vector
// code, and, where there is a GPU, the kernels against the twin.
#include <gtest/gtest.h>

#include "base/gpu_module.hpp"
#include "stages/solve/factor.hpp"
#include "stages/solve/gptq.hpp"
#include "tests/stages/kernels_on_threads.hpp"
#include "tests/stages/solve_support.hpp"

namespace selfcal {
namespace {

using namespace testing_support;

struct Case {
  std::string name;
  int64_t rows = 70, columns = 320;
  at::ScalarType dtype = at::kFloat;
  MethodSettings settings;
};

void PrintTo(const Case& chosen, std::ostream* out) { *out << chosen.name; }

MethodSettings gptq(int bits, int64_t group_size) {
  MethodSettings settings;
  settings.bits = bits;
  settings.group_size = group_size;
  settings.act_order = ActOrder::none;
  return settings;
}

MethodSettings pruner(int zeros, int of, int bits = unquantised_bits) {
  MethodSettings settings = gptq(bits, 64);
  settings.name = MethodName::sparsegpt;
  settings.sparsity.pattern = {zeros, of};
  return settings;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const char* name, const MethodSettings& settings, int64_t columns = 320,
                       at::ScalarType dtype = at::kFloat) {
    all.push_back({name, 70, columns, dtype, settings});
  };
  MethodSettings s = gptq(4, 64);
  add("symmetric", s);
  s.symmetric = false;
  add("asymmetric", s, 330, at::kBFloat16);
  s.act_order = ActOrder::static_order;
  add("static_order", s, 300, at::kHalf);
  s.act_order = ActOrder::dynamic_order;
  add("dynamic_order", s);
  s = gptq(3, 48);
  s.static_groups = StaticGroups::no;
  add("groups_on_the_way", s, 330);
  s.group_parameters = GroupParameters::published;
  s.scale_dtype = at::kHalf;
  add("groups_as_published", s);
  s = gptq(4, 200);  // longer than a block
  s.static_groups = StaticGroups::no;
  s.scale_dtype = at::kBFloat16;
  add("groups_longer_than_blocks", s, 500);
  s = gptq(2, -1);
  s.mse = true;
  add("whole_rows_searched", s, 130);
  s = gptq(4, 32);
  s.mse = true;
  s.static_groups = StaticGroups::no;
  s.block_size = 64;
  add("groups_searched_on_the_way", s, 128);
  add("two_of_four", pruner(2, 4));
  add("four_of_eight_bfloat16", pruner(4, 8), 256, at::kBFloat16);
  add("runs_longer_than_a_step", pruner(20, 32));
  s = pruner(2, 4, 4);
  add("joint", s);
  s.act_order = ActOrder::static_order;
  add("joint_ordered", s);
  s = pruner(2, 4, 3);
  s.static_groups = StaticGroups::no;
  s.symmetric = false;
  add("joint_on_the_way", s);
  return all;
}

/// One problem, by the vector code and by a solver of rows.
class ByRow : public testing::TestWithParam<Case> {
 protected:
  ByRow()
      : threads_(1),
        problem_(random_problem(7, GetParam().rows, GetParam().columns)),
        factor_(factorise_inverse(problem_.hessian, 0.01,
                                  GetParam().settings.act_order == ActOrder::none
                                      ? 0
                                      : std::max(1, GetParam().settings.sparsity.pattern.of),
                                  threads_.context())),
        tiles_(load_tiles(problem_.weight, 0, GetParam().rows)) {}

  GptqTiles solver(const lanes::Kernels& kernels) {
    return GptqTiles(GetParam().settings, GetParam().dtype, factor_, kernels, threads_.context());
  }

  Threads threads_;
  Problem problem_;
  Factor factor_;
  at::Tensor tiles_;
};

std::vector<std::pair<std::string, at::Tensor>> tensors_of(const TileSolution& solution) {
  std::vector<std::pair<std::string, at::Tensor>> all;
  for (const auto& [name, tensor] : {std::pair{"weight", solution.weight},
                                     {"codes", solution.codes},
                                     {"scale", solution.scale},
                                     {"zero", solution.zero},
                                     {"kept", solution.kept}})
    if (tensor.defined()) all.emplace_back(name, tensor);
  return all;
}

/// The share of entries for which `equal` holds must be at least `least`, in every tensor.
void expect_equal(const TileSolution& found, const TileSolution& expected, double least,
                  const std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>& equal) {
  const auto a = tensors_of(found), b = tensors_of(expected);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const at::Tensor same = equal(a[i].second.contiguous(), b[i].second.contiguous());
    EXPECT_GE(same.to(at::kDouble).mean().item<double>(), least) << a[i].first;
  }
}

void expect_same_bits(const TileSolution& found, const TileSolution& expected) {
  expect_equal(found, expected, 1, [](const at::Tensor& a, const at::Tensor& b) {
    return a.view(at::kInt).eq(b.view(at::kInt));
  });
}

TEST_P(ByRow, TwinIsTheVectorCode) {
  const auto sets = lanes::available_kernels();
  for (int64_t i = 0; i < sets.count; ++i) {
    const lanes::Kernels& kernels = *sets.first[i];
    SCOPED_TRACE(kernels.instruction_set);
    const GptqTiles tiles = solver(kernels);
    const auto twin = make_cpu_twin();
    const TileSolution found = tiles.solve_with(*twin, tiles_), expected = tiles(tiles_);
    if (std::string(kernels.instruction_set) != "baseline") {
      expect_same_bits(found, expected);
      continue;
    }
    // The baseline has no fused multiply-add where the twin has: ties may fall to the other side.
    expect_equal(found, expected, 0.98, [](const at::Tensor& a, const at::Tensor& b) {
      return at::isclose(a, b, 1e-4, 1e-6);
    });
  }
}

TEST_P(ByRow, KernelsOnThreadsOfTheCpuAreTheTwin) {
  const GptqTiles tiles = solver(lanes::kernels());
  const auto kernels = make_kernels_on_threads();
  const auto twin = make_cpu_twin();
  expect_same_bits(tiles.solve_with(*kernels, tiles_), tiles.solve_with(*twin, tiles_));
}

TEST_P(ByRow, GpuIsTheTwin) {
  const GpuModule module = GpuModule::load(SELFCAL_GPU_MODULE);
  if (!module.is_present()) GTEST_SKIP() << module.absence();
  const GptqTiles tiles = solver(lanes::kernels());
  const auto gpu = module.make<TileSolver>(cuda_tile_solver);
  const auto twin = make_cpu_twin();
  expect_same_bits(tiles.solve_with(*gpu, tiles_), tiles.solve_with(*twin, tiles_));
}

INSTANTIATE_TEST_SUITE_P(Settings, ByRow, testing::ValuesIn(cases()),
                         [](const auto& chosen) { return chosen.param.name; });

TEST(ByRowSolver, RefusesRowsThatMeet) {
  Threads threads(1);
  const Problem problem = random_problem(1, 32, 64);
  const Factor factor = factorise_inverse(problem.hessian, 0.01, 0, threads.context());
  MethodSettings settings = pruner(2, 4);
  settings.sparsity = {.share = 0.5, .pattern = {}};
  const GptqTiles tiles(settings, at::kFloat, factor, lanes::kernels(), threads.context());
  const auto twin = make_cpu_twin();
  expect_failure(ExitCode::config, "sparsity is 0.5",
                 [&] { tiles.solve_with(*twin, load_tiles(problem.weight, 0, 32)); });
}

}  // namespace
}  // namespace selfcal
