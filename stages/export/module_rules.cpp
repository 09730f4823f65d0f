#include "stages/export/module_rules.hpp"

#include <algorithm>

namespace selfcal::module_rules {

std::string exactly(const std::string& module) {
  std::string text = "^";
  for (const char c : module) text += c == '.' ? "\\." : std::string(1, c);
  return text + "$";
}

std::vector<std::string> inside_blocks(const std::vector<std::string>& plain) {
  std::vector<std::string> inside;
  for (const auto& module : plain)
    if (module.find(".layers.") != std::string::npos) inside.push_back(module);
  std::ranges::sort(inside);
  return inside;
}

std::string left_out(const std::string& module) { return "-:" + exactly(module); }

}  // namespace selfcal::module_rules
