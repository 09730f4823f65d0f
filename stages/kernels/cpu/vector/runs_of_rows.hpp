// Rows in runs of a number that the compiler knows, so that their sums stay in registers.
#pragma once
#include <type_traits>

#include "stages/kernels/cpu/vector/vector.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {

/// body(rows) as a constant, of 1 to `most`.
template <int most, class Body>
SELFCAL_INLINE void with_rows(int64_t rows, const Body& body) {
  if constexpr (most > 0) {
    if (rows == most)
      body(std::integral_constant<int, most>());
    else
      with_rows<most - 1>(rows, body);
  }
}

/// body(count, first) for rows [0, rows) in runs of `most`, the last one shorter.
template <int most, class Body>
SELFCAL_INLINE void for_runs_of_rows(int64_t rows, const Body& body) {
  int64_t row = 0;
  for (; row + most <= rows; row += most) body(std::integral_constant<int, most>(), row);
  with_rows<most - 1>(rows - row, [&](auto count) { body(count, row); });
}

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
