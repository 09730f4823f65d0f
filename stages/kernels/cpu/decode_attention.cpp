#include <ATen/ATen.h>

#include <memory>

#include "stages/kernels/cpu/cpu_operations.hpp"
#include "stages/kernels/cpu/matrix.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal::kernels {

at::Tensor cpu::decode_attention(const Context& context, const at::Tensor& q,
                                 const at::Tensor& positions, const at::Tensor& keys,
                                 const at::Tensor& values, double scale,
                                 const AttentionLimits& limits) {
  require(q.dim() == 3 && keys.dim() == 4 && keys.sizes() == values.sizes() &&
              q.size(0) == keys.size(0) && q.size(2) == keys.size(3) &&
              q.size(1) % keys.size(1) == 0 && positions.numel() == q.size(0),
          "decode_attention: {} queries of {} heads do not fit a cache of {} with {}", q.size(0),
          q.size(1), keys.size(0), keys.size(1));
  require(q.scalar_type() == keys.scalar_type() && q.scalar_type() == values.scalar_type(),
          "decode_attention: a query of {} and a cache of {}", at::toString(q.scalar_type()),
          at::toString(keys.scalar_type()));
  const auto& vectors = vector_kernels();
  const int64_t sequences = q.size(0), head_dim = q.size(2), kv_heads = keys.size(1),
                capacity = keys.size(2);
  const int64_t heads = q.size(1) / kv_heads;  // that share keys
  const int64_t row_bytes = head_dim * q.element_size(), query_bytes = heads * row_bytes,
                cache_bytes = capacity * row_bytes;
  const auto* const position = positions.const_data_ptr<int64_t>();
  const auto* const q_data = static_cast<const char*>(matrix_of(q).data);
  const auto* const key_data = static_cast<const char*>(matrix_of(keys).data);
  const auto* const value_data = static_cast<const char*>(matrix_of(values).data);
  for (int64_t s = 0; s < sequences; ++s)
    require(position[s] >= 0 && position[s] < capacity,
            "decode_attention: position {} is outside a cache of {}", position[s], capacity);

  auto result = at::empty_like(q);
  auto* const result_data = static_cast<char*>(result.mutable_data_ptr());
  for_tiles(context, sequences * kv_heads, [&](int64_t index) {
    const int64_t seen = position[index / kv_heads] + 1;
    const int64_t tokens = limits.window > 0 ? std::min(seen, limits.window) : seen;
    const int64_t skipped = index * cache_bytes + (seen - tokens) * row_bytes;
    const auto scratch =
        std::make_unique_for_overwrite<float[]>(vectors.attention_scratch(heads, tokens, head_dim));
    vectors.attention_tile({q_data + index * query_bytes, key_data + skipped, value_data + skipped,
                            result_data + index * query_bytes, number_of(q), heads, tokens,
                            head_dim, static_cast<float>(scale),
                            static_cast<float>(limits.soft_cap), scratch.get()});
  });
  return result;
}

}  // namespace selfcal::kernels
