#include "stages/generate/ranking.hpp"

#include <algorithm>

namespace selfcal {

static constexpr int64_t bucket_count = 2048;
static constexpr float buckets_a_nat = 32;

Ranking::Ranking(const float* logits, const float* weights, int64_t count, float largest)
    : logits_(logits), weights_(weights), count_(count), largest_(largest), buckets_(bucket_count) {
  for (int64_t token = 0; token < count; ++token) {
    Bucket& bucket = buckets_[bucket_of(logits[token])];
    ++bucket.tokens;
    bucket.weight += weights[token];
  }
}

Cut Ranking::first(int64_t tokens) const {
  Cut cut;
  for (int64_t bucket = 0; bucket < bucket_count; ++bucket) {
    if (tokens > buckets_[bucket].tokens && bucket + 1 < bucket_count) {
      tokens -= buckets_[bucket].tokens;
      cut.weight += buckets_[bucket].weight;
      continue;
    }
    for (int64_t token : ranked(bucket)) {
      cut = {logits_[token], token, cut.weight + weights_[token]};
      if (--tokens == 0) break;
    }
    break;
  }
  return cut;
}

Cut Ranking::holding(double weight) const {
  Cut cut;
  for (int64_t bucket = 0; bucket < bucket_count; ++bucket) {
    if (cut.weight + buckets_[bucket].weight < weight && bucket + 1 < bucket_count) {
      cut.weight += buckets_[bucket].weight;
      continue;
    }
    for (int64_t token : ranked(bucket)) {
      cut = {logits_[token], token, cut.weight + weights_[token]};
      if (cut.weight >= weight) break;
    }
    break;
  }
  return cut;
}

/// Never falls as the logit falls, so that buckets are runs of the ranking.
int64_t Ranking::bucket_of(float logit) const {
  const float distance = (largest_ - logit) * buckets_a_nat;
  return distance < bucket_count - 1 ? static_cast<int64_t>(distance) : bucket_count - 1;
}

std::vector<int64_t> Ranking::ranked(int64_t bucket) const {
  std::vector<int64_t> tokens;
  tokens.reserve(buckets_[bucket].tokens);
  for (int64_t token = 0; token < count_; ++token)
    if (bucket_of(logits_[token]) == bucket) tokens.push_back(token);
  std::sort(tokens.begin(), tokens.end(), [&](int64_t a, int64_t b) {
    return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
  });
  return tokens;
}

}  // namespace selfcal
