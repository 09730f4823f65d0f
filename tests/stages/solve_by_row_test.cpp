// Solves on a device, on host memory with the CPU twin of the CUDA kernels for the kernels: beside
// the host's, the kernels' own text beside the twin, and, where there is a GPU, the GPU beside it.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>

#include "base/gpu_module.hpp"
#include "stages/solve/device_feedback.hpp"
#include "stages/solve/device_tiles.hpp"
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
  s.static_groups = AutoFlag::no;
  add("groups_on_the_way", s, 330);
  s.group_parameters = GroupParameters::published;
  s.scale_dtype = at::kHalf;
  add("groups_as_published", s);
  s = gptq(4, 200);  // longer than a block
  s.static_groups = AutoFlag::no;
  s.scale_dtype = at::kBFloat16;
  add("groups_longer_than_blocks", s, 500);
  s = gptq(2, -1);
  s.mse = AutoFlag::yes;
  add("whole_rows_searched", s, 130);
  s = gptq(4, 32);
  s.mse = AutoFlag::yes;
  s.static_groups = AutoFlag::no;
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
  s.static_groups = AutoFlag::no;
  s.symmetric = false;
  add("joint_on_the_way", s);
  return all;
}

/// One problem, by the host's threads and by solvers of a device.
class ByRow : public testing::TestWithParam<Case> {
 protected:
  MeasuredRows on_host() {
    return solve(problem_, GetParam().settings, /*threads=*/1, GetParam().dtype);
  }
  MeasuredRows on_device(SolveKernels& kernels, at::Device memory = at::kCPU) {
    const kernels::Device device{memory, &kernels::library_operations, &kernels};
    const auto method = make_method(GetParam().settings, {&threads_.pool, device});
    EXPECT_EQ(method->row_tile(), 256);  // the device's method, not the host's
    return solve(problem_, *method, GetParam().dtype);
  }

  Threads threads_{1};
  Problem problem_ = random_problem(7, GetParam().rows, GetParam().columns);
};

std::vector<std::pair<std::string, at::Tensor>> tensors_of(const MeasuredRows& solved) {
  const CompressedLinear& linear = solved.linear;
  std::vector<std::pair<std::string, at::Tensor>> all;
  for (const auto& [name, tensor] : {std::pair{"weight", linear.weight},
                                     {"codes", linear.codes},
                                     {"scale", linear.scale},
                                     {"zero", linear.zero},
                                     {"g_idx", linear.g_idx},
                                     {"mask", linear.mask},
                                     {"error", solved.error},
                                     {"nearest", solved.nearest_error},
                                     {"reference", solved.reference}})
    if (tensor.defined()) all.emplace_back(name, tensor);
  return all;
}

void expect_same_bits(const MeasuredRows& found, const MeasuredRows& expected) {
  const auto a = tensors_of(found), b = tensors_of(expected);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i)
    EXPECT_TRUE(same_bits(a[i].second, b[i].second)) << a[i].first;
}

double total(const at::Tensor& rows) { return rows.sum().item<double>(); }

TEST_P(ByRow, DeviceComesToWhatTheHostDoes) {
  const auto twin = make_cpu_twin();
  const MeasuredRows found = on_device(*twin), expected = on_host();
  // Sums of other order: what lies near a tie may fall to its other side, and all after it.
  for (const auto& [name, tensor] : tensors_of(expected)) {
    SCOPED_TRACE(name);
    const auto tensors = tensors_of(found);
    const auto same = std::ranges::find(tensors, name, &std::pair<std::string, at::Tensor>::first);
    ASSERT_NE(same, tensors.end());
    ASSERT_EQ(same->second.sizes(), tensor.sizes());
    ASSERT_EQ(same->second.scalar_type(), tensor.scalar_type());
    const at::Tensor close =
        at::isclose(same->second.to(at::kDouble), tensor.to(at::kDouble), 1e-4, 1e-6);
    EXPECT_GE(close.to(at::kDouble).mean().item<double>(), name == "error" ? 0.5 : 0.97);
  }
  EXPECT_NEAR(total(found.error) / total(expected.error), 1, 5e-3);
  EXPECT_NEAR(total(found.nearest_error) / total(expected.nearest_error), 1, 1e-5);
  EXPECT_NEAR(total(found.reference) / total(expected.reference), 1, 1e-5);
}

TEST_P(ByRow, KernelsOnThreadsOfTheCpuAreTheTwin) {
  const auto kernels = make_kernels_on_threads();
  const auto twin = make_cpu_twin();
  expect_same_bits(on_device(*kernels), on_device(*twin));
}

TEST_P(ByRow, GpuIsTheTwin) {
  const GpuModule module = GpuModule::load(SELFCAL_GPU_MODULE);
  if (!module.is_present()) GTEST_SKIP() << module.absence();
  load_cuda_tensors();
  const auto gpu = module.make<SolveKernels>(cuda_solve_kernels);
  const auto twin = make_cpu_twin();
  const MeasuredRows found = on_device(*gpu, at::kCUDA), expected = on_device(*twin);
  // The products between the blocks are cuBLAS's there.
  EXPECT_GE(share_equal(found.linear.weight, expected.linear.weight), 0.97);
  EXPECT_NEAR(total(found.error) / total(expected.error), 1, 5e-3);
}

/// Of one block: no product of another order comes in between.
TEST_P(ByRow, OfOneBlockBitsAreThoseOfTheVectorCode) {
  const Problem problem = random_problem(8, 70, 128);
  const MethodSettings& settings = GetParam().settings;
  const kernels::Context context = threads_.context();
  const Factor factor = factorise_inverse(problem.hessian, settings, context);
  const auto twin = make_cpu_twin();
  const DeviceTiles device(settings, GetParam().dtype, factor,
                           {at::kCPU, &kernels::library_operations, twin.get()});
  const at::Tensor tiles = load_tiles(problem.weight, 0, 70);  // of 32 rows, which will do
  const TileSolution found = device(tiles);
  if (settings.block_size < 128) GTEST_SKIP() << "of two blocks";
  const auto sets = lanes::available_kernels();
  for (int64_t i = 0; i < sets.count; ++i) {
    const lanes::Kernels& kernels = *sets.first[i];
    SCOPED_TRACE(kernels.instruction_set);
    const TileSolution expected =
        GptqTiles(settings, GetParam().dtype, factor, kernels, context)(tiles);
    // The baseline has no fused multiply-add where the twin has: ties may fall to the other side.
    const bool fuses = std::string(kernels.instruction_set) != "baseline";
    const auto compare = [&](const at::Tensor& a, const at::Tensor& b) {
      ASSERT_EQ(a.defined(), b.defined());
      if (!a.defined()) return;
      EXPECT_TRUE(!fuses || same_bits(a.contiguous(), b.contiguous()));
      EXPECT_GE(at::isclose(a, b, 1e-4, 1e-6).to(at::kDouble).mean().item<double>(), 0.98);
    };
    compare(found.weight, expected.weight);
    compare(found.codes, expected.codes);
    compare(found.scale, expected.scale);
    compare(found.zero, expected.zero);
    compare(found.kept, expected.kept);
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, ByRow, testing::ValuesIn(cases()),
                         [](const auto& chosen) { return chosen.param.name; });

TEST(DeviceSolve, GpuModuleHasTheKernels) {
  if (!std::filesystem::exists(SELFCAL_GPU_MODULE)) GTEST_SKIP() << "the module is not built";
  const GpuModule module = GpuModule::open(SELFCAL_GPU_MODULE);
  ASSERT_TRUE(module.is_present()) << module.absence();
  EXPECT_NE(module.make<SolveKernels>(cuda_solve_kernels), nullptr);
}

/// Which rows a rank has, and how many it solves at once, changes nothing.
TEST(DeviceSolve, RowsDoNotDependOnEachOther) {
  Threads threads(2);
  const auto twin = make_cpu_twin();
  const kernels::Context context{&threads.pool,
                                 {at::kCPU, &kernels::library_operations, twin.get()}};
  const Problem problem = random_problem(3, 600, 144);
  const auto method = make_method(gptq(4, 16), context);
  const auto solved = [&](int64_t first, int64_t count) {
    return solve({problem.weight.narrow(0, first, count), problem.hessian}, *method, at::kFloat);
  };
  const MeasuredRows all = solved(0, 600), head = solved(0, 256), tail = solved(256, 344);
  EXPECT_TRUE(same_bits(all.linear.codes, at::cat({head.linear.codes, tail.linear.codes})));
  EXPECT_TRUE(same_bits(all.linear.weight, at::cat({head.linear.weight, tail.linear.weight})));
  EXPECT_TRUE(same_bits(all.error, at::cat({head.error, tail.error})));
  EXPECT_TRUE(same_bits(all.nearest_error, at::cat({head.nearest_error, tail.nearest_error})));
}

TEST(DeviceSolve, DeadColumnsAreZero) {
  Threads threads(1);
  const auto twin = make_cpu_twin();
  Problem problem = random_problem(4, 40, 144);
  problem.hessian.select(0, 5).zero_();
  problem.hessian.select(1, 5).zero_();
  MethodSettings settings = gptq(4, 16);
  const auto method =
      make_method(settings, {&threads.pool, {at::kCPU, &kernels::library_operations, twin.get()}});
  const Factor factor = method->factorise(problem.hessian);
  const SolvedRows found = method->solve(problem.weight, problem.hessian, factor, at::kFloat);
  EXPECT_EQ(found.linear.weight.select(1, 5).abs().max().item<float>(), 0);
  EXPECT_EQ(found.linear.dead_columns, 1);
}

TEST(DeviceSolve, ErrorsAreThoseOfTheHost) {
  Threads threads(1);
  const auto twin = make_cpu_twin();
  const auto method = make_method(
      gptq(4, 16), {&threads.pool, {at::kCPU, &kernels::library_operations, twin.get()}});
  Problem problem = random_problem(4, 40, 64);
  const Factor factor = method->factorise(problem.hessian);
  problem.weight[3][5] = std::numeric_limits<float>::infinity();
  expect_failure(ExitCode::data, "weight not finite",
                 [&] { method->solve(problem.weight, problem.hessian, factor, at::kFloat); });
}

TEST(DeviceSolve, LeavesToTheHostWhatItsKernelsLack) {
  Threads threads(1);
  const auto twin = make_cpu_twin();
  const kernels::Context context{&threads.pool,
                                 {at::kCPU, &kernels::library_operations, twin.get()}};
  const auto expect_host = [&](MethodSettings settings, const std::string& reason) {
    EXPECT_EQ(make_method(settings, context)->row_tile(), lanes::rows);
    EXPECT_EQ(reason_for_host(settings).value_or("none").find(reason), 0) << reason;
  };
  MethodSettings settings = pruner(2, 4);
  EXPECT_FALSE(reason_for_host(settings));
  settings.sparsity = {.share = 0.5, .pattern = {}};
  expect_host(settings, "a share of zeros");
  settings = gptq(4, 64);
  settings.block_size = 256;
  expect_host(settings, "block_size is 256");
  settings = gptq(4, 64);
  settings.name = MethodName::awq;
  expect_host(settings, "awq has no kernel");
}

}  // namespace
}  // namespace selfcal
