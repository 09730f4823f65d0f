// What every configuration must say.
#pragma once
#include <string>

namespace selfcal {

inline const std::string minimal = "model: {path: models/demo}\noutput: runs/demo\n";

}  // namespace selfcal
