// The operations of ops.hpp by our kernels: vector code in fixed tiles, host memory.
#pragma once
#include "stages/kernels/operations.hpp"

namespace selfcal::kernels::cpu {

decltype(kernels::linear) linear;
decltype(kernels::rms_norm) rms_norm;
decltype(kernels::layer_norm) layer_norm;
decltype(kernels::activate) activate;
decltype(kernels::soft_cap) soft_cap;
decltype(kernels::add) add;
decltype(kernels::cross_entropy) cross_entropy;
decltype(kernels::rotate) rotate;
decltype(kernels::causal_attention) causal_attention;
decltype(kernels::decode_attention) decode_attention;
decltype(kernels::append) append;

}  // namespace selfcal::kernels::cpu
