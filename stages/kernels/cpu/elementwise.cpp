#include <ATen/ATen.h>

#include <atomic>

#include "stages/kernels/cpu/loops.hpp"
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

at::Tensor rms_norm(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                    double epsilon, double offset) {
  require(x.is_contiguous() && weight.is_contiguous() && x.size(-1) == weight.numel() &&
              x.scalar_type() == weight.scalar_type(),
          "rms_norm: rows of {} with a weight of {}", x.size(-1), weight.numel());
  at::Tensor y = at::empty_like(x);
  const int64_t columns = weight.numel(), rows = columns ? x.numel() / columns : 0;
  with_element(x, [&](auto element) {
    using T = decltype(element);
    const T *from = x.const_data_ptr<T>(), *factors = weight.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    for_ranges(context, rows, rows_a_tile(columns), [&](int64_t first, int64_t count) {
      for (int64_t row = first; row < first + count; ++row)
        rms_norm_row(from + row * columns, factors, columns, static_cast<float>(epsilon),
                     static_cast<float>(offset), to + row * columns);
    });
  });
  return y;
}

at::Tensor silu_multiply(const Context& context, const at::Tensor& gate, const at::Tensor& up) {
  require_same("silu_multiply", gate, up);
  at::Tensor y = at::empty_like(gate);
  with_element(gate, [&](auto element) {
    using T = decltype(element);
    const T *a = gate.const_data_ptr<T>(), *b = up.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    for_ranges(context, gate.numel(), elements_a_tile, [&](int64_t first, int64_t count) {
      silu_multiply_loop(a + first, b + first, count, to + first);
    });
  });
  return y;
}

at::Tensor add(const Context& context, const at::Tensor& a, const at::Tensor& b) {
  require_same("add", a, b);
  at::Tensor y = at::empty_like(a);
  with_element(a, [&](auto element) {
    using T = decltype(element);
    const T *left = a.const_data_ptr<T>(), *right = b.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    for_ranges(context, a.numel(), elements_a_tile, [&](int64_t first, int64_t count) {
      add_loop(left + first, right + first, count, to + first);
    });
  });
  return y;
}

bool all_finite(const Context& context, const at::Tensor& x) {
  require(x.is_contiguous(), "all_finite: the tensor is not contiguous");
  std::atomic<bool> found = false;
  const auto search = [&](auto exponent) {
    using Bits = decltype(exponent);
    const auto* bits = static_cast<const Bits*>(x.const_data_ptr());
    for_ranges(context, x.numel(), 1 << 18, [&](int64_t first, int64_t count) {
      if (any_exponent_full(bits + first, count, exponent)) found = true;
    });
  };
  switch (x.scalar_type()) {
    case at::kFloat:
      search(uint32_t{0x7f800000});
      break;
    case at::kBFloat16:
      search(uint16_t{0x7f80});
      break;
    case at::kHalf:
      search(uint16_t{0x7c00});
      break;
    default:
      fail(ExitCode::internal, "all_finite: no bits known of {}", at::toString(x.scalar_type()));
  }
  return !found;
}

void rotate(const Context& context, at::Tensor& x, const at::Tensor& positions,
            const at::Tensor& cosine, const at::Tensor& sine) {
  const int64_t tokens = x.size(0), heads = x.size(1), head_dim = x.size(2), half = cosine.size(1);
  require(x.is_contiguous() && positions.numel() == tokens && cosine.sizes() == sine.sizes() &&
              2 * half <= head_dim,
          "rotate: {} tokens with {} positions, heads of {} with angles of {}", tokens,
          positions.numel(), head_dim, half);
  with_element(x, [&](auto element) {
    using T = decltype(element);
    T* data = x.mutable_data_ptr<T>();
    const auto* position = positions.const_data_ptr<int64_t>();
    const float *cosines = cosine.const_data_ptr<float>(), *sines = sine.const_data_ptr<float>();
    for_ranges(context, tokens, rows_a_tile(heads * head_dim), [&](int64_t first, int64_t count) {
      for (int64_t token = first; token < first + count; ++token)
        for (int64_t head = 0; head < heads; ++head)
          rotate_head(data + (token * heads + head) * head_dim, cosines + position[token] * half,
                      sines + position[token] * half, half);
    });
  });
}

}  // namespace selfcal::kernels
