// What an error message lists as known.
#pragma once
#include <string>

namespace selfcal {

/// The keys of a map of texts: "a, b, c".
std::string names_of(const auto& map) {
  std::string names;
  for (const auto& entry : map) names += (names.empty() ? "" : ", ") + entry.first;
  return names;
}

}  // namespace selfcal
