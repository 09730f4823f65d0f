#include <ATen/ATen.h>

#include <atomic>

#include "stages/kernels/cpu/cpu_operations.hpp"
#include "stages/kernels/cpu/matrix.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal::kernels {
namespace {

constexpr int64_t elements_a_tile = 1 << 16;

int64_t rows_a_tile(int64_t columns) {
  return std::max<int64_t>(1, elements_a_tile / std::max<int64_t>(1, columns));
}

void require_same(const char* operation, const at::Tensor& a, const at::Tensor& b) {
  require(a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && a.is_contiguous() &&
              b.is_contiguous(),
          "{}: operands differ in shape or type, or are not contiguous", operation);
}

}  // namespace

at::Tensor cpu::rms_norm(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                         double epsilon, double offset) {
  require(x.size(-1) == weight.numel() && x.scalar_type() == weight.scalar_type(),
          "rms_norm: rows of {} with a weight of {}", x.size(-1), weight.numel());
  at::Tensor y = at::empty_like(x);
  const Matrix rows = matrix_of(x), factors = matrix_of(weight);
  void* to = y.mutable_data_ptr();
  for_ranges(context, rows.count, rows_a_tile(rows.columns), [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; ++row)
      vector_kernels().rms_norm_row(at_entry(rows, row * rows.columns), factors.data, rows.number,
                                    rows.columns, static_cast<float>(epsilon),
                                    static_cast<float>(offset),
                                    at_entry(to, rows.number, row * rows.columns));
  });
  return y;
}

at::Tensor cpu::layer_norm(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& bias, double epsilon) {
  require(x.size(-1) == weight.numel() && weight.numel() == bias.numel() &&
              x.scalar_type() == weight.scalar_type() && x.scalar_type() == bias.scalar_type(),
          "layer_norm: rows of {} with a weight of {} and a bias of {}", x.size(-1), weight.numel(),
          bias.numel());
  at::Tensor y = at::empty_like(x);
  const Matrix rows = matrix_of(x), factors = matrix_of(weight), shifts = matrix_of(bias);
  void* to = y.mutable_data_ptr();
  for_ranges(context, rows.count, rows_a_tile(rows.columns), [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; ++row)
      vector_kernels().layer_norm_row(at_entry(rows, row * rows.columns), factors.data, shifts.data,
                                      rows.number, rows.columns, static_cast<float>(epsilon),
                                      at_entry(to, rows.number, row * rows.columns));
  });
  return y;
}

at::Tensor cpu::activate(const Context& context, Activation activation, const at::Tensor& x,
                         const at::Tensor& factor) {
  require_same("activate", x, factor.defined() ? factor : x);
  at::Tensor y = at::empty_like(x);
  const Matrix values = matrix_of(x), factors = matrix_of(factor);
  void* to = y.mutable_data_ptr();
  for_ranges(context, x.numel(), elements_a_tile, [&](int64_t first, int64_t count) {
    vector_kernels().activate(activation, at_entry(values, first),
                              factors.data ? at_entry(factors, first) : nullptr, values.number,
                              count, at_entry(to, values.number, first));
  });
  return y;
}

void cpu::soft_cap(const Context& context, at::Tensor& x, double cap) {
  require(x.scalar_type() == at::kFloat && x.is_contiguous() && cap > 0,
          "soft_cap: {} values, cap {}", at::toString(x.scalar_type()), cap);
  float* values = x.mutable_data_ptr<float>();
  for_ranges(context, x.numel(), elements_a_tile, [&](int64_t first, int64_t count) {
    vector_kernels().soft_cap(values + first, count, static_cast<float>(cap));
  });
}

at::Tensor cpu::add(const Context& context, const at::Tensor& a, const at::Tensor& b) {
  require_same("add", a, b);
  at::Tensor y = at::empty_like(a);
  const Matrix left = matrix_of(a), right = matrix_of(b);
  void* to = y.mutable_data_ptr();
  for_ranges(context, a.numel(), elements_a_tile, [&](int64_t first, int64_t count) {
    vector_kernels().add(at_entry(left, first), at_entry(right, first), left.number, count,
                         at_entry(to, left.number, first));
  });
  return y;
}

bool all_finite(const Context& context, const at::Tensor& x) {
  require(x.is_contiguous(), "all_finite: the tensor is not contiguous");
  const auto& vectors = vector_kernels();
  const at::ScalarType dtype = x.scalar_type();
  require(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
          "all_finite: bits of {} are not known", at::toString(dtype));
  const void* data = x.const_data_ptr();
  std::atomic<bool> finite = true;
  for_ranges(context, x.numel(), 1 << 18, [&](int64_t first, int64_t count) {
    const bool here =
        dtype == at::kFloat
            ? vectors.all_finite32(static_cast<const uint32_t*>(data) + first, count, 0x7f800000)
            : vectors.all_finite16(static_cast<const uint16_t*>(data) + first, count,
                                   dtype == at::kHalf ? 0x7c00 : 0x7f80);
    if (!here) finite = false;
  });
  return finite;
}

void cpu::rotate(const Context& context, at::Tensor& x, const at::Tensor& positions,
                 const at::Tensor& cosine, const at::Tensor& sine) {
  const int64_t tokens = x.size(0), heads = x.size(1), head_dim = x.size(2), half = cosine.size(1);
  require(x.is_contiguous() && positions.numel() == tokens && cosine.sizes() == sine.sizes() &&
              2 * half <= head_dim,
          "rotate: {} tokens with {} positions, heads of {} with angles of {}", tokens,
          positions.numel(), head_dim, half);
  void* data = x.mutable_data_ptr();
  const Number number = number_of(x);
  const auto* position = positions.const_data_ptr<int64_t>();
  const float *cosines = cosine.const_data_ptr<float>(), *sines = sine.const_data_ptr<float>();
  for_ranges(context, tokens, rows_a_tile(heads * head_dim), [&](int64_t first, int64_t count) {
    for (int64_t token = first; token < first + count; ++token)
      for (int64_t head = 0; head < heads; ++head)
        vector_kernels().rotate_head(at_entry(data, number, (token * heads + head) * head_dim),
                                     number, cosines + position[token] * half,
                                     sines + position[token] * half, half);
  });
}

}  // namespace selfcal::kernels
