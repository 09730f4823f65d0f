#include "stages/model/norm.hpp"

#include "stages/model/parts.hpp"

namespace selfcal {

void Norm::declare(std::map<std::string, std::vector<int64_t>>& parameters) const {
  parameters[name + ".weight"] = {width};
  if (kind == Kind::layer) parameters[name + ".bias"] = {width};
}

at::Tensor Norm::apply(const kernels::Context& context, const at::Tensor& x,
                       const BlockWeights& weights) const {
  const at::Tensor& weight = find_weight(weights, name + ".weight");
  if (kind == Kind::root_mean_square) return kernels::rms_norm(context, x, weight, epsilon, offset);
  return kernels::layer_norm(context, x, weight, find_weight(weights, name + ".bias"), epsilon);
}

Norm layer_norm(std::string name, int64_t width, double epsilon) {
  return {std::move(name), width, epsilon, 0, Norm::Kind::layer};
}

}  // namespace selfcal
