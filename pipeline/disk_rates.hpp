// How fast files are written where a run writes its own.
#pragma once
#include <optional>

#include "base/file.hpp"

namespace selfcal {

struct DiskRates {
  double bandwidth = 0;  // bytes/s of a file, until it is on the disk
  double commit = 0;     // seconds of a small file, written as layer files are
};

/// Of the nearest folder on the way to `folder` that is there: writes some MiB and leaves nothing;
/// tens of milliseconds. None where nothing can be written. Independent.
std::optional<DiskRates> measure_disk(const fs::path& folder);

}  // namespace selfcal
