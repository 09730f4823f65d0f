// How operations are cut: tiles whose shapes depend on the operands' shapes only.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <new>

#include "base/error.hpp"
#include "stages/kernels/ops.hpp"

namespace selfcal::kernels {

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Runs body(tile) for each tile on the context's threads, or here without a pool.
inline void for_tiles(const Context& context, int64_t count,
                      const std::function<void(int64_t)>& body) {
  if (context.threads) return context.threads->parallel_for(count, body);
  for (int64_t tile = 0; tile < count; ++tile) body(tile);
}

/// Runs body(first, count) over [0, n) in runs of `step`.
template <class Body>
void for_ranges(const Context& context, int64_t n, int64_t step, const Body& body) {
  for_tiles(context, ceil_divide(n, step),
            [&](int64_t tile) { body(tile * step, std::min(step, n - tile * step)); });
}

/// Floats of one thread that keep their memory from tile to tile; aligned for vector loads.
class Scratch {
 public:
  float* floats(int64_t count) {
    if (count > capacity_) {
      constexpr size_t alignment = 64;
      const size_t bytes =
          (static_cast<size_t>(count) * sizeof(float) + alignment - 1) / alignment * alignment;
      memory_.reset(static_cast<float*>(std::aligned_alloc(alignment, bytes)));
      if (!memory_) throw std::bad_alloc();
      capacity_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t capacity_ = 0;
};

/// The tensor itself where its memory is contiguous and aligned as a fresh tensor's is, a copy
/// where not: results must not depend on where an operand lies.
inline at::Tensor aligned(const at::Tensor& tensor) {
  const bool as_fresh =
      tensor.is_contiguous() && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 64 == 0;
  return as_fresh ? tensor : tensor.clone(at::MemoryFormat::Contiguous);
}

/// Calls body with a value of the tensor's element type: float or BFloat16.
template <class Body>
decltype(auto) with_element(const at::Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == at::kFloat) return body(float{});
  if (tensor.scalar_type() == at::kBFloat16) return body(at::BFloat16{});
  fail(ExitCode::internal, "kernels compute in float32 or bfloat16, not {}",
       at::toString(tensor.scalar_type()));
}

template <class... Args>
void require(bool holds, fmt::format_string<Args...> text, Args&&... args) {
  if (!holds) fail(ExitCode::internal, text, std::forward<Args>(args)...);
}

}  // namespace selfcal::kernels
