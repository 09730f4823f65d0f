#include "pipeline/disk_rates.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "base/error.hpp"

namespace selfcal {
namespace {

constexpr size_t small_file = 1 << 12, large_file = 8 << 20;
constexpr int repeats = 3;

fs::path nearest_there(fs::path folder) {
  folder = fs::absolute(folder);
  while (!fs::exists(folder) && folder.has_relative_path()) folder = folder.parent_path();
  return folder;
}

/// A file that is gone at the end.
class ProbeFile {
 public:
  explicit ProbeFile(const fs::path& folder)
      : path_(folder / fmt::format(".selfcal-disk-{}", ::getpid())) {}
  ~ProbeFile() {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  ProbeFile(const ProbeFile&) = delete;
  ProbeFile& operator=(const ProbeFile&) = delete;

  /// Seconds of a file of so many bytes: the best of several.
  double write(size_t bytes) const {
    const std::string text(bytes, 'x');
    double best = 1e30;
    for (int time = 0; time < repeats; ++time) {
      const auto start = std::chrono::steady_clock::now();
      write_text_atomically(path_, text);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      best = std::min(best, taken.count());
    }
    return best;
  }

 private:
  fs::path path_;
};

}  // namespace

std::optional<DiskRates> measure_disk(const fs::path& folder) try {
  const ProbeFile probe(nearest_there(folder));
  const double commit = probe.write(small_file), whole = probe.write(large_file);
  return DiskRates{static_cast<double>(large_file) / std::max(whole - commit, 1e-4), commit};
} catch (const Error&) {
  return std::nullopt;
} catch (const fs::filesystem_error&) {
  return std::nullopt;
}

}  // namespace selfcal
