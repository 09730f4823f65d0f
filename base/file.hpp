// Files: reads by offset, whole-file writes that are complete or absent.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace selfcal {

namespace fs = std::filesystem;

/// A file opened for reading; reads by offset from any thread. Errors carry the path
/// (ExitCode::io).
class InputFile {
 public:
  explicit InputFile(fs::path path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  const fs::path& path() const noexcept { return path_; }
  uint64_t size() const noexcept { return size_; }
  /// Fills `into` from `offset`; a file that ends before is an error (ExitCode::data).
  void read_at(uint64_t offset, std::span<std::byte> into) const;

 private:
  fs::path path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

/// The whole of a text file.
std::string read_text(const fs::path& path);

/// Calls write(temporary path), then syncs, renames onto `path` and syncs the folder: `path` is the
/// old file or the whole new one at every moment. The temporary file is removed when write throws.
void write_atomically(const fs::path& path, const std::function<void(const fs::path&)>& write);
void write_text_atomically(const fs::path& path, std::string_view text);

/// fsync of a file or a folder.
void sync_path(const fs::path& path);

}  // namespace selfcal
