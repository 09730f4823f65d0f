// Norms, composed by value: of the root mean square or of mean and variance.
#pragma once
#include <string>

#include "stages/model/block.hpp"

namespace selfcal {

struct Norm {
  enum class Kind {
    root_mean_square,  // x / rms(x) * (offset + weight)
    layer              // (x - mean) / deviation * weight + bias
  };
  std::string name;
  int64_t width = 0;
  double epsilon = 0;
  double offset = 0;  // 1 in Gemma
  Kind kind = Kind::root_mean_square;

  void declare(std::map<std::string, std::vector<int64_t>>& parameters) const;
  /// x: [.., width], contiguous.
  at::Tensor apply(const kernels::Context& context, const at::Tensor& x,
                   const BlockWeights& weights) const;
};

Norm layer_norm(std::string name, int64_t width, double epsilon);

}  // namespace selfcal
