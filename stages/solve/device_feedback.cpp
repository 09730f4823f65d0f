#include "stages/solve/device_feedback.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.hpp"
#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/device_tiles.hpp"
#include "stages/solve/factor.hpp"
#include "storage/packing.hpp"

namespace selfcal {
namespace {

constexpr int64_t tile_rows = DeviceTiles::rows;
// Bounds what the device holds of a matrix at a time: tiles, their solution, the control's, and
// what is between them.
constexpr int64_t most_entries = int64_t{1} << 27, arrays_of_tiles = 8;

int64_t rows_at_once(int64_t columns) {
  return std::max<int64_t>(most_entries / columns / tile_rows, 1) * tile_rows;
}

/// Tiles [tiles, columns, tile_rows] of a weight's rows; rows past the last are 0.
at::Tensor load(const at::Tensor& weight, const at::Device& memory) {
  const int64_t count = weight.size(0), columns = weight.size(1),
                tiles = kernels::ceil_divide(count, tile_rows);
  at::Tensor rows =
      at::zeros({tiles * tile_rows, columns}, at::device(memory).dtype(weight.scalar_type()));
  rows.narrow(0, 0, count).copy_(weight);
  rows = rows.to(at::kFloat);
  if (!rows.isfinite().all().item<bool>()) fail(ExitCode::data, "weight not finite");
  return rows.view({tiles, tile_rows, columns}).transpose(1, 2).contiguous();
}

/// The first `count` rows of tiles as a matrix of `dtype` in the host's memory.
at::Tensor rows_of(const at::Tensor& tiles, int64_t count, at::ScalarType dtype) {
  return tiles.transpose(1, 2)
      .to(dtype)
      .reshape({tiles.size(0) * tile_rows, tiles.size(1)})
      .narrow(0, 0, count)
      .to(at::kCPU)
      .contiguous();
}

class DeviceFeedback : public Method {
 public:
  DeviceFeedback(const MethodSettings& settings, const kernels::Context& context)
      : settings_(settings), context_(context) {}

  Factor factorise(const at::Tensor& hessian) const override {
    return factorise_inverse(hessian, settings_, context_);
  }

  at::Device memory() const override { return context_.device.memory; }
  int64_t row_tile() const override { return tile_rows; }

  RowControls controls(const at::Tensor& weight, const at::Tensor& given_hessian,
                       at::ScalarType weight_dtype) const override {
    check_problem(weight, given_hessian, settings_);
    const at::Device memory = context_.device.memory;
    const at::Tensor hessian = given_hessian.to(memory);
    Factor factor = trivial_factor(hessian);
    factor.upper = factor.upper.to(memory);
    const DeviceTiles solver(settings_, weight_dtype, factor, context_.device);
    const int64_t rows = weight.size(0), step = rows_at_once(weight.size(1));
    RowControls controls{at::empty({rows}, at::kDouble), at::empty({rows}, at::kDouble)};
    for (int64_t first = 0; first < rows; first += step) {
      const int64_t count = std::min(step, rows - first);
      const at::Tensor tiles = load(weight.narrow(0, first, count), memory);
      store_forms(hessian, tiles, controls.reference, first, count);
      store_forms(hessian, tiles - solver.data_free(tiles), controls.nearest_error, first, count);
    }
    return controls;
  }

  SolvedRows solve(const at::Tensor& weight, const at::Tensor& given_hessian,
                   const Factor& given_factor, at::ScalarType weight_dtype,
                   const RowTeam&) const override {
    check_problem(weight, given_hessian, settings_);
    const at::Device memory = context_.device.memory;
    const at::Tensor hessian = given_hessian.to(memory);
    Factor factor = given_factor;
    factor.upper = factor.upper.to(memory);
    const DeviceTiles solver(settings_, weight_dtype, factor, context_.device);
    const int64_t rows = weight.size(0), columns = weight.size(1), step = rows_at_once(columns);
    SolvedRows solved = empty_rows(rows, columns, settings_, solver.groups(), weight_dtype);
    for (int64_t first = 0; first < rows; first += step) {
      const int64_t count = std::min(step, rows - first);
      const at::Tensor tiles = load(weight.narrow(0, first, count), memory);
      const TileSolution solution = solver(tiles);
      store(solution, solved.linear, first, count);
      store_forms(hessian, tiles - solution.weight, solved.error, first, count);
    }
    if (solver.groups().by_position)
      solved.linear.g_idx = group_of_columns(solver.groups(), factor.permutation);
    note_factor(solved, factor);
    return solved;
  }

 private:
  /// Packed by the host's threads.
  void store(const TileSolution& solution, CompressedLinear& linear, int64_t first,
             int64_t count) const {
    constexpr int64_t packed_at_once = 64;
    const auto pack = [&](const at::Tensor& numbers, at::Tensor& into, const auto& packed) {
      const at::Tensor whole = rows_of(numbers, count, at::kByte);
      kernels::for_ranges(context_, count, packed_at_once, [&](int64_t row, int64_t some) {
        into.narrow(0, first + row, some).copy_(packed(whole.narrow(0, row, some)));
      });
    };
    const auto copy = [&](const at::Tensor& tiles, at::Tensor& into) {
      into.narrow(0, first, count).copy_(rows_of(tiles, count, into.scalar_type()));
    };
    copy(solution.weight, linear.weight);
    if (linear.mask.defined()) pack(solution.kept, linear.mask, pack_mask);
    if (!linear.codes.defined()) return;
    check_scales(solution.scale, linear.scale.scalar_type());
    pack(solution.codes, linear.codes,
         [&](const at::Tensor& codes) { return pack_codes(codes, linear.bits); });
    copy(solution.scale, linear.scale);
    copy(solution.zero, linear.zero);
  }

  /// x H x^T of each row: products in float32, the forms in float64.
  static void store_forms(const at::Tensor& hessian, const at::Tensor& tiles, at::Tensor& forms,
                          int64_t first, int64_t count) {
    std::vector<at::Tensor> sums;
    for (int64_t tile = 0; tile < tiles.size(0); ++tile) {
      const at::Tensor x = tiles.select(0, tile);
      sums.push_back(at::mm(hessian, x).to(at::kDouble).mul_(x).sum(0));
    }
    const at::Tensor mine = at::cat(sums).narrow(0, 0, count).to(at::kCPU);
    check_forms({mine.const_data_ptr<double>(), size_t(count)});
    forms.narrow(0, first, count).copy_(mine);
  }

  MethodSettings settings_;
  kernels::Context context_;
};

}  // namespace

double device_solve_bytes(int64_t rows, int64_t columns) {
  const int64_t padded = kernels::ceil_divide(rows, tile_rows) * tile_rows;
  return static_cast<double>(std::min(padded, rows_at_once(columns)) * columns) * sizeof(float) *
         arrays_of_tiles;
}

std::optional<std::string> reason_for_host(const MethodSettings& settings) {
  const lanes::Pattern& pattern = settings.sparsity.pattern;
  if (settings.name != MethodName::gptq && settings.name != MethodName::sparsegpt)
    return to_text(settings.name) + " has no kernel";
  if (settings.sparsity.share > 0) return "a share of zeros is chosen over all rows together";
  if (settings.block_size > SolveKernels::largest_block)
    return fmt::format("block_size is {}, kernels hold {} columns", settings.block_size,
                       SolveKernels::largest_block);
  if (settings.quantises() && pattern.of > 0 && settings.group_size > 0 &&
      settings.group_size % pattern.of != 0)
    return fmt::format("groups of {} are no whole runs of {} columns", settings.group_size,
                       pattern.of);
  return std::nullopt;
}

std::unique_ptr<Method> make_device_feedback(const MethodSettings& settings,
                                             const kernels::Context& context) {
  if (const auto reason = reason_for_host(settings))
    fail(ExitCode::internal, "a device's kernels: {}", *reason);
  return std::make_unique<DeviceFeedback>(settings, context);
}

}  // namespace selfcal
