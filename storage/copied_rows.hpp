// How tensors pass from file to file: in runs of rows.
#pragma once
#include <algorithm>
#include <cstdint>

namespace selfcal {

/// Rows of a tensor that are copied at once: 4 MiB, which stay in the caches, or one row. Depends
/// on the shape only, so that all ranks take as many steps.
inline int64_t copied_rows(int64_t rows, int64_t bytes) {
  constexpr int64_t at_once = int64_t{4} << 20;
  const int64_t of_a_row = bytes / std::max<int64_t>(1, rows);
  return std::max<int64_t>(1, at_once / std::max<int64_t>(1, of_a_row));
}

}  // namespace selfcal
