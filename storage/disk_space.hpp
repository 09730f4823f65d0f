// Finding a full disk before a library that does not survive one begins to write.
#pragma once
#include <cstdint>

#include "base/file.hpp"

namespace selfcal {

/// ExitCode::io if the file system of `folder` (or a quota or a limit on file sizes) has no room
/// for a file of `bytes`.
void expect_room(const fs::path& folder, int64_t bytes);

/// Reserves the first `bytes` of a file that is there; where the file system cannot, does nothing.
void reserve(const fs::path& file, int64_t bytes);

}  // namespace selfcal
