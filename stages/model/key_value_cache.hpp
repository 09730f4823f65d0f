// Keys and values of one decoder block for a micro-batch, allocated once at full length.
#pragma once
#include <ATen/core/Tensor.h>

namespace selfcal {

struct KeyValueCache {
  at::Tensor keys;    // compute dtype [sequences, key_value_heads, capacity, head_dim]
  at::Tensor values;  // the same shape
};

}  // namespace selfcal
