// How many rows of tokens go through a model together.
#pragma once
#include <algorithm>
#include <cstdint>

namespace selfcal {

/// Rows of a full leaf: max(1, 2048 / length).
constexpr int64_t leaf_rows(int64_t length) {
  return std::max<int64_t>(1, 2048 / std::max<int64_t>(1, length));
}

}  // namespace selfcal
