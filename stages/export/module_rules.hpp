// What readers of the gptq and awq formats are told of single modules, by name.
#pragma once
#include <string>
#include <vector>

namespace selfcal::module_rules {

/// The name as an expression that matches nothing else.
std::string exactly(const std::string& module);

/// Of modules that stay dense, those inside the blocks, in order: readers leave all others alone.
std::vector<std::string> inside_blocks(const std::vector<std::string>& plain);

/// The key of GPTQModel's `dynamic` that leaves the module as it is.
std::string left_out(const std::string& module);

}  // namespace selfcal::module_rules
