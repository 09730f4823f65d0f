// The arithmetic of the models. Every operation is cut into fixed tiles by shape; a tile is
// computed by one thread with one-thread library calls, so results do not depend on the number of
// threads (design: the numerical contract). Tensors are contiguous, float32 or bfloat16; bfloat16
// is accumulated in float32 and rounded once, at the end.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "base/thread_pool.hpp"

namespace selfcal::kernels {

/// Where operations run: a borrowed pool that outlives every user.
struct Context {
  ThreadPool* threads = nullptr;
};

/// Call once in each thread before tensor work (also ThreadPool's on_start): library calls stay on
/// one thread.
void use_one_library_thread();

/// y = x W^T + bias. x: [n, in]; weight: [out, in] of x's dtype; bias: [out] or undefined. Result
/// [n, out] in `result` dtype (default: x's). Up to `few_rows` rows take the memory-bound kernel of
/// decoding, more take tiled GEMMs.
inline constexpr int64_t few_rows = 32;
at::Tensor linear(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                  const at::Tensor& bias = {}, std::optional<at::ScalarType> result = {});

/// x / sqrt(mean(x^2) + epsilon) * (offset + weight), by row. x: [n, d].
at::Tensor rms_norm(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                    double epsilon, double offset = 0.0);
/// silu(gate) * up.
at::Tensor silu_multiply(const Context& context, const at::Tensor& gate, const at::Tensor& up);
/// a + b, rounded to their dtype.
at::Tensor add(const Context& context, const at::Tensor& a, const at::Tensor& b);

/// Whether no entry is NaN or infinite. x: float32, bfloat16 or float16, contiguous.
bool all_finite(const Context& context, const at::Tensor& x);

/// Negative log-likelihood of each row's target, float32 [n]: log(sum(exp(row))) - row[target].
/// logits: float32 [n, vocabulary]; targets: int64 [n].
at::Tensor cross_entropy(const Context& context, const at::Tensor& logits,
                         const at::Tensor& targets);

/// Rotates in place the first 2 * cosine.size(1) entries of each head (half-split pairing, as in
/// Hugging Face Llama). x: [n, heads, head_dim]; positions: int64 [n]; cosine, sine: float32
/// [positions, rotary_dim / 2].
void rotate(const Context& context, at::Tensor& x, const at::Tensor& positions,
            const at::Tensor& cosine, const at::Tensor& sine);

/// Causal attention of whole sequences. q: [sequences, tokens, heads, head_dim]; k, v: [sequences,
/// tokens, kv_heads, head_dim]; softmax in float32. Result like q.
at::Tensor causal_attention(const Context& context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, double scale);

/// One query a sequence over its cache entries 0..positions[s]. q: [sequences, heads, head_dim];
/// keys, values: [sequences, kv_heads, capacity, head_dim]. Result like q.
at::Tensor decode_attention(const Context& context, const at::Tensor& q,
                            const at::Tensor& positions, const at::Tensor& keys,
                            const at::Tensor& values, double scale);

}  // namespace selfcal::kernels
