// What a file of ours holds, in lines for people.
#pragma once
#include <string>

#include "base/file.hpp"

namespace selfcal {

/// A layer file, calibration file, gathered checkpoint, other HDF5 or safetensors file, or a model
/// directory: its header and a line for each tensor or layer. Weights are not read. Something else
/// is ExitCode::data.
std::string inspect(const fs::path& path);

}  // namespace selfcal
