// The operations of ops.hpp as a table: one for each kind of code that can do them. Which one is
// taken is chosen once, with the context's device.
#pragma once
#include "stages/kernels/ops.hpp"

namespace selfcal::kernels {

/// Signatures: those of ops.hpp, where they are documented.
struct Operations {
  decltype(kernels::linear)* linear;
  decltype(kernels::rms_norm)* rms_norm;
  decltype(kernels::layer_norm)* layer_norm;
  decltype(kernels::activate)* activate;
  decltype(kernels::soft_cap)* soft_cap;
  decltype(kernels::add)* add;
  decltype(kernels::cross_entropy)* cross_entropy;
  decltype(kernels::rotate)* rotate;
  decltype(kernels::causal_attention)* causal_attention;
  decltype(kernels::decode_attention)* decode_attention;
  decltype(kernels::append)* append;
};

}  // namespace selfcal::kernels
