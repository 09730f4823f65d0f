#include "storage/disk_space.hpp"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.hpp"

namespace selfcal {
namespace {

/// 0, or the error; a file system that cannot reserve counts as 0.
int reserve_in(const fs::path& file, int flags, int64_t bytes, bool* cannot) {
  const int descriptor = ::open(file.c_str(), O_WRONLY | O_CLOEXEC | flags, 0644);
  if (descriptor < 0) return errno;
  const int error = ::fallocate(descriptor, 0, 0, bytes) == 0 ? 0 : errno;
  ::close(descriptor);
  *cannot = error == EOPNOTSUPP || error == ENOSYS;
  return *cannot ? 0 : error;
}

}  // namespace

void expect_room(const fs::path& folder, int64_t bytes) {
  const fs::path probe = folder / fmt::format(".room.{}.tmp", ::getpid());
  bool cannot = false;
  int error = reserve_in(probe, O_CREAT | O_TRUNC, bytes, &cannot);
  ::unlink(probe.c_str());
  struct statvfs status {};
  if (cannot && ::statvfs(folder.c_str(), &status) == 0 &&
      static_cast<uint64_t>(bytes) > static_cast<uint64_t>(status.f_bavail) * status.f_frsize)
    error = ENOSPC;
  if (error != 0)
    fail(ExitCode::io, "{}: no room for a file of {} bytes: {}", folder.string(), bytes,
         std::strerror(error));
}

void reserve(const fs::path& file, int64_t bytes) {
  bool cannot = false;
  const int error = reserve_in(file, 0, bytes, &cannot);
  if (error != 0)
    fail(ExitCode::io, "{}: cannot reserve {} bytes: {}", file.string(), bytes,
         std::strerror(error));
}

}  // namespace selfcal
