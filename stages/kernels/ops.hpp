// The arithmetic of the models, by the code that the context's device is worked on with
// (operations.hpp): our kernels on CPUs, the tensor library's operations elsewhere. On CPUs every
// operation is cut into fixed tiles by shape; a tile is computed by one thread with one-thread
// library calls, so results do not depend on the number of threads (design: the numerical
// contract). Tensors are contiguous, float32 or bfloat16; bfloat16 is accumulated in float32 and
// rounded once, at the end.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "base/thread_pool.hpp"
#include "stages/kernels/activation.hpp"

namespace selfcal {
class SolveKernels;
}

namespace selfcal::kernels {

struct Operations;
extern const Operations cpu_operations;      // our kernels; host memory only
extern const Operations library_operations;  // the tensor library's; memory of any kind

/// Where tensors live on their way through a block, and the code that works on them. Library
/// operations on host memory are the double of a GPU that tests use.
struct Device {
  at::Device memory{at::kCPU};
  const Operations* operations = &cpu_operations;
  SolveKernels* solver = nullptr;  // borrowed; none: solves run on the host's threads

  bool uses_library() const { return operations == &library_operations; }
};

/// Where operations run: a borrowed pool that outlives every user, for what is in host memory; the
/// device.
struct Context {
  ThreadPool* threads = nullptr;
  Device device = {};
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
/// (x - mean) / sqrt(variance + epsilon) * weight + bias, by row (Ba et al., arXiv 1607.06450).
at::Tensor layer_norm(const Context& context, const at::Tensor& x, const at::Tensor& weight,
                      const at::Tensor& bias, double epsilon);
/// activation(x), times `factor` where it is given: the gated form of MLPs.
at::Tensor activate(const Context& context, Activation activation, const at::Tensor& x,
                    const at::Tensor& factor = {});
/// x = cap * tanh(x / cap), in place. x: float32.
void soft_cap(const Context& context, at::Tensor& x, double cap);
/// a + b, rounded to their dtype.
at::Tensor add(const Context& context, const at::Tensor& a, const at::Tensor& b);

/// Whether no entry is NaN or infinite. x: float32, bfloat16 or float16, contiguous, in host
/// memory whatever the device.
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

/// What attention does beside softmax(scale * q k^T) v.
struct AttentionLimits {
  int64_t window = 0;   // latest positions that a query sees, itself among them; 0: all
  double soft_cap = 0;  // scores s become cap * tanh(s / cap); 0: they stay
};

/// Causal attention of whole sequences. q: [sequences, tokens, heads, head_dim]; k, v: [sequences,
/// tokens, kv_heads, head_dim]; softmax in float32. Result like q.
at::Tensor causal_attention(const Context& context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, double scale, const AttentionLimits& limits = {});

/// One query a sequence over its cache entries 0..positions[s]. q: [sequences, heads, head_dim];
/// keys, values: [sequences, kv_heads, capacity, head_dim]. Result like q.
at::Tensor decode_attention(const Context& context, const at::Tensor& q,
                            const at::Tensor& positions, const at::Tensor& keys,
                            const at::Tensor& values, double scale,
                            const AttentionLimits& limits = {});

/// Entry positions[s] of each sequence's cache becomes rows[s]. cache: [sequences, kv_heads,
/// capacity, head_dim]; positions: int64 [sequences]; rows: [sequences, kv_heads, head_dim];
/// contiguous.
void append(const Context& context, at::Tensor& cache, const at::Tensor& positions,
            const at::Tensor& rows);

}  // namespace selfcal::kernels
