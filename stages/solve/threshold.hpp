// The k-th smallest of many scores that lie on several ranks, exactly: integer histograms of the
// bits of the floats, added up over the ranks, so that any dealing of rows gives the same answer.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace selfcal {

/// Floats that are not negative are ordered as their bits are; they are told apart from the highest
/// bits down, 11, 11 and 10 at a time. Per pass: clear(), count() everything, histogram() summed
/// over the ranks, narrow().
class ThresholdSearch {
 public:
  static constexpr int passes = 3;

  /// `share`: the threshold is the score of rank int(count * share), from 0, in rising order.
  explicit ThresholdSearch(double share) : share_(share), histogram_(bins) {}

  void clear() { histogram_.assign(bins, 0); }
  /// Adds this pass's bins of the scores to `histogram` (of bins() entries, one a thread).
  void count(std::span<const float> scores, std::span<int64_t> histogram) const;
  std::span<int64_t> histogram() { return histogram_; }
  static constexpr int64_t size() { return bins; }
  /// Takes the pass's histogram of all ranks.
  void narrow();
  /// After the last pass; of no scores at all: a number that none is below.
  float threshold() const;

 private:
  static constexpr int64_t bins = 1 << 11;
  int shift() const { return pass_ == 0 ? 21 : pass_ == 1 ? 10 : 0; }
  int width() const { return pass_ == 2 ? 10 : 11; }

  double share_;
  int pass_ = 0;
  uint32_t prefix_ = 0;  // the bits found so far, above shift() + width()
  int64_t rank_ = 0;     // of the threshold among the scores with that prefix
  bool none_ = false;
  std::vector<int64_t> histogram_;
};

}  // namespace selfcal
