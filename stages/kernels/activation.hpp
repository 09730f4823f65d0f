#pragma once

namespace selfcal::kernels {

/// What lies between the linear layers of an MLP. gelu_tanh is the approximation that "gelu_new"
/// and "gelu_pytorch_tanh" name.
enum class Activation { silu, gelu, gelu_tanh, relu };

}  // namespace selfcal::kernels
