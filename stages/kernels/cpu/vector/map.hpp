// Loops over contiguous numbers whose rest, which does not fill a vector, goes through the same
// vector arithmetic: a result does not depend on a number's place.
#pragma once
#include <type_traits>

#include "stages/kernels/cpu/vector/vector.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {

/// The first `count` < width numbers, zeros after them.
template <class Stored>
SELFCAL_INLINE Floats read_some(const Stored* from, int64_t count) {
  Stored numbers[width] = {};
  std::memcpy(numbers, from, static_cast<size_t>(count) * sizeof(Stored));
  return read_widened(numbers);
}
template <class Stored>
SELFCAL_INLINE void write_some(Stored* to, Floats value, int64_t count) {
  Stored numbers[width];
  write_rounded(numbers, value);
  std::memcpy(to, numbers, static_cast<size_t>(count) * sizeof(Stored));
}

/// to[i] = compute(from[i]...).
template <class Compute, class Target, class... Sources>
SELFCAL_INLINE void map(int64_t n, Compute compute, Target* to, const Sources*... from) {
  int64_t i = 0;
  for (; i + width <= n; i += width) write_rounded(to + i, compute(read_widened(from + i)...));
  if (i < n) write_some(to + i, compute(read_some(from + i, n - i)...), n - i);
}

template <class Pointer>
using stored_type = std::remove_const_t<std::remove_pointer_t<Pointer>>;

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
