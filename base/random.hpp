// Counter-based random numbers: a draw is a pure function of what it is for, so it never depends on
// who draws it or when.
#pragma once
#include <array>
#include <cstdint>

namespace selfcal {

/// What a random number is for. Equal fields give equal numbers on any rank, thread or run.
struct DrawId {
  uint64_t seed = 0;
  uint32_t set = 0;       // which disjoint draw of the calibration set
  uint32_t sequence = 0;  // row of the set
  uint32_t attempt = 0;   // redraws of one sequence
  uint32_t position = 0;  // token position
};

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// Uniform in [0, 1) with 53 random bits.
double uniform(const DrawId& id);

}  // namespace selfcal
