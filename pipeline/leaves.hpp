// How a calibration set is cut for the forward pass. The cut follows the shapes only: it is part of
// a job's identity.
#pragma once
#include <cstdint>
#include <vector>

#include "stages/evaluate/leaf_rows.hpp"

namespace selfcal {

/// Rows [first, first + rows) of the set, always computed together. No leaf crosses a micro-batch,
/// so that a generator holds all of a leaf as soon as it has sampled the micro-batch.
struct Leaf {
  int64_t index = 0;
  int64_t first = 0;
  int64_t rows = 0;
  int64_t micro_batch = 0;
};

/// Leaves of at most leaf_rows(length) rows.
std::vector<Leaf> cut_leaves(int64_t sequences, int64_t length, int64_t micro_batch);

}  // namespace selfcal
