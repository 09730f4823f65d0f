// Names of tensors and of the modules that they belong to.
#pragma once
#include <string>
#include <string_view>

namespace selfcal {

/// "model.layers.0.mlp.up_proj.weight" -> "model.layers.0.mlp.up_proj".
inline std::string module_of(const std::string& tensor_name) {
  constexpr std::string_view suffix = ".weight";
  return tensor_name.ends_with(suffix) ? tensor_name.substr(0, tensor_name.size() - suffix.size())
                                       : tensor_name;
}

}  // namespace selfcal
