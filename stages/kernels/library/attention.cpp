// Attention in float32, of blocks of queries over all keys that any of them may see.
#include <ATen/ATen.h>

#include <limits>

#include "stages/kernels/library/library_operations.hpp"

namespace selfcal::kernels {
namespace {

constexpr int64_t queries_together = 256;

/// softmax of the scores where `seen`, times the values.
/// scores: [sequences, kv_heads, rows, keys], overwritten; seen: broadcast to it; values: [..,
/// keys, head_dim].
at::Tensor mix(const at::Tensor& scores, const at::Tensor& seen, const at::Tensor& values,
               const AttentionLimits& limits) {
  if (limits.soft_cap > 0) scores.div_(limits.soft_cap).tanh_().mul_(limits.soft_cap);
  scores.masked_fill_(~seen, -std::numeric_limits<float>::infinity());
  return at::matmul(at::softmax(scores, -1), values);
}

/// Which keys the queries at `positions` see. positions: broadcast against keys [keys].
at::Tensor seen_by(const at::Tensor& positions, const at::Tensor& keys, int64_t window) {
  const at::Tensor past = keys <= positions;
  return window > 0 ? past & (keys > positions - window) : past;
}

at::Tensor numbers(int64_t first, int64_t end, const at::Tensor& like) {
  return at::arange(first, end, like.options().dtype(at::kLong));
}

}  // namespace

at::Tensor library::causal_attention(const Context&, const at::Tensor& q, const at::Tensor& k,
                                     const at::Tensor& v, double scale,
                                     const AttentionLimits& limits) {
  const int64_t sequences = q.size(0), tokens = q.size(1), head_dim = q.size(3),
                kv_heads = k.size(2), group = q.size(2) / kv_heads;
  const auto by_head = [](const at::Tensor& x) { return x.to(at::kFloat).transpose(1, 2); };
  const at::Tensor queries =
      by_head(q).contiguous().view({sequences, kv_heads, group, tokens, head_dim});
  const at::Tensor keys = by_head(k).contiguous(), values = by_head(v).contiguous();
  at::Tensor result = at::empty_like(q);
  at::Tensor heads = result.view({sequences, tokens, kv_heads, group, head_dim});
  for (int64_t first = 0; first < tokens; first += queries_together) {
    const int64_t end = std::min(first + queries_together, tokens), count = end - first;
    const at::Tensor block = queries.narrow(3, first, count)
                                 .reshape({sequences, kv_heads, group * count, head_dim})
                                 .mul(scale);
    const at::Tensor scores = at::matmul(block, keys.narrow(2, 0, end).transpose(2, 3));
    const at::Tensor seen =
        seen_by(numbers(first, end, q).unsqueeze(1), numbers(0, end, q), limits.window);
    const at::Tensor mixed = mix(scores, seen.repeat({group, 1}), values.narrow(2, 0, end), limits);
    heads.narrow(1, first, count)
        .copy_(mixed.view({sequences, kv_heads, group, count, head_dim}).permute({0, 3, 1, 2, 4}));
  }
  return result;
}

/// Over the whole cache, so that shapes do not depend on positions.
at::Tensor library::decode_attention(const Context&, const at::Tensor& q,
                                     const at::Tensor& positions, const at::Tensor& keys,
                                     const at::Tensor& values, double scale,
                                     const AttentionLimits& limits) {
  const int64_t sequences = q.size(0), head_dim = q.size(2), kv_heads = keys.size(1);
  const at::Tensor queries = q.to(at::kFloat).view({sequences, kv_heads, -1, head_dim}).mul(scale);
  const at::Tensor scores = at::matmul(queries, keys.to(at::kFloat).transpose(2, 3));
  const at::Tensor seen =
      seen_by(positions.view({-1, 1, 1, 1}), numbers(0, keys.size(2), q), limits.window);
  return mix(scores, seen, values.to(at::kFloat), limits).to(q.scalar_type()).view(q.sizes());
}

}  // namespace selfcal::kernels
