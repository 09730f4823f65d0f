#include "stages/solve/threshold.hpp"

#include <bit>
#include <numeric>

namespace selfcal {

void ThresholdSearch::count(std::span<const float> scores, std::span<int64_t> histogram) const {
  const int low = shift();
  const uint32_t mask = (1u << width()) - 1;
  for (const float score : scores) {
    const uint32_t bits = std::bit_cast<uint32_t>(score) >> low;
    const bool counts = pass_ == 0 || bits >> width() == prefix_;
    histogram[bits & mask] += counts;
  }
}

void ThresholdSearch::narrow() {
  if (pass_ == 0) {
    const int64_t all = std::accumulate(histogram_.begin(), histogram_.end(), int64_t{0});
    none_ = all == 0;
    rank_ = static_cast<int64_t>(static_cast<double>(all) * share_);
  }
  uint32_t bin = 0;
  for (; bin + 1 < bins && rank_ >= histogram_[bin]; ++bin) rank_ -= histogram_[bin];
  prefix_ = prefix_ << width() | bin;
  ++pass_;
}

float ThresholdSearch::threshold() const { return none_ ? -1.0f : std::bit_cast<float>(prefix_); }

}  // namespace selfcal
