#include "pipeline/leaves.hpp"

#include <algorithm>

namespace selfcal {

std::vector<Leaf> cut_leaves(int64_t sequences, int64_t length, int64_t micro_batch) {
  const int64_t most_rows = leaf_rows(length);
  std::vector<Leaf> leaves;
  for (int64_t first = 0; first < sequences;) {
    const int64_t batch_end = std::min(sequences, (first / micro_batch + 1) * micro_batch);
    const int64_t rows = std::min(most_rows, batch_end - first);
    leaves.push_back({static_cast<int64_t>(leaves.size()), first, rows, first / micro_batch});
    first += rows;
  }
  return leaves;
}

}  // namespace selfcal
