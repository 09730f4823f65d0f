// The most likely tokens of a distribution without sorting the vocabulary.
#pragma once
#include <cstdint>
#include <vector>

namespace selfcal {

/// The last token of a prefix of the ranking (by logit, equals by lowest id), and the weight of
/// that prefix.
struct Cut {
  float logit = 0;
  int64_t token = 0;
  double weight = 0;

  bool keeps(float other_logit, int64_t other_token) const {
    return other_logit > logit || (other_logit == logit && other_token <= token);
  }
};

/// Tokens in buckets by their distance from the largest logit; only the bucket of a cut is sorted.
/// Borrows logits and weights (both [count]).
class Ranking {
 public:
  Ranking(const float* logits, const float* weights, int64_t count, float largest);

  /// The first `tokens` tokens (or all).
  Cut first(int64_t tokens) const;
  /// The fewest first tokens whose weight is at least `weight` (or all).
  Cut holding(double weight) const;

 private:
  struct Bucket {
    int64_t tokens = 0;
    double weight = 0;
  };

  int64_t bucket_of(float logit) const;
  std::vector<int64_t> ranked(int64_t bucket) const;

  const float* logits_;
  const float* weights_;
  int64_t count_;
  float largest_;
  std::vector<Bucket> buckets_;
};

}  // namespace selfcal
