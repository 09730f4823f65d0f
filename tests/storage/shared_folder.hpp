// A folder that all ranks of a test work in.
#pragma once
#include <array>
#include <cstring>
#include <optional>

#include "comm/communicator.hpp"
#include "temporary_folder.hpp"

namespace selfcal {

/// The first rank's folder, known to all; removed at the end.
class SharedFolder {
 public:
  explicit SharedFolder(const Communicator& ranks) : ranks_(ranks) {
    if (ranks.rank() == 0) folder_.emplace();
    std::array<char, 256> path{};
    if (folder_) std::strncpy(path.data(), folder_->path().c_str(), path.size() - 1);
    ranks.broadcast(std::as_writable_bytes(std::span(path)), 0);
    path_ = path.data();
  }
  ~SharedFolder() { ranks_.barrier(); }
  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  Communicator ranks_;
  std::optional<TemporaryFolder> folder_;
  fs::path path_;
};

}  // namespace selfcal
