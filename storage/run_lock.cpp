#include "storage/run_lock.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>

#include "base/error.hpp"
#include "base/host.hpp"
#include "storage/dtype.hpp"

namespace selfcal {
namespace {

/// Field 22 of /proc/<pid>/stat; 0 where there is no such process, or it has ended and only waits
/// to be reaped.
int64_t start_of_process(int64_t pid) {
  try {
    std::array<char, 4096> buffer{};
    const int descriptor = ::open(fmt::format("/proc/{}/stat", pid).c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return 0;
    const ssize_t got = ::read(descriptor, buffer.data(), buffer.size() - 1);
    ::close(descriptor);
    const std::string text(buffer.data(), got > 0 ? static_cast<size_t>(got) : 0);
    std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 2)));
    std::string field;
    for (int i = 3; i <= 22; ++i) {
      fields >> field;
      if (i == 3 && (field == "Z" || field == "X")) return 0;
    }
    return std::stoll(field);
  } catch (const std::exception&) {
    return 0;
  }
}

std::string to_text(const LockOwner& owner) {
  return fmt::format("host: {}\npid: {}\nstarted: {}\njob: {}\nrestart: {}\n", owner.host,
                     owner.pid, owner.started, owner.job, owner.restart);
}

int64_t number_or_zero(const std::string& text) { return std::strtoll(text.c_str(), nullptr, 10); }

LockOwner from_text(const std::string& text) {
  std::map<std::string, std::string> fields;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) fields[line.substr(0, colon)] = line.substr(colon + 2);
  }
  return {fields["host"], number_or_zero(fields["pid"]), number_or_zero(fields["started"]),
          fields["job"], number_or_zero(fields["restart"])};
}

bool is_stale(const LockOwner& holder, const LockOwner& owner) {
  if (!holder.job.empty() && holder.job == owner.job && holder.restart < owner.restart) return true;
  if (holder.host != owner.host || holder.pid <= 0) return false;
  if (::kill(static_cast<pid_t>(holder.pid), 0) != 0 && errno == ESRCH) return true;
  const int64_t started = start_of_process(holder.pid);
  if (started == 0) return fs::exists("/proc/self/stat");
  return holder.started != 0 && started != holder.started;
}

/// True when the file was made; false when it is already there.
bool make_exclusively(const fs::path& path, const std::string& text) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0 && errno == EEXIST) return false;
  if (descriptor < 0)
    fail(ExitCode::io, "{}: cannot create: {}", path.string(), std::strerror(errno));
  const ssize_t put = ::write(descriptor, text.data(), text.size());
  const bool written = put == static_cast<ssize_t>(text.size()) && ::fsync(descriptor) == 0;
  const int error = errno;
  ::close(descriptor);
  if (!written) {
    ::unlink(path.c_str());
    fail(ExitCode::io, "{}: cannot write: {}", path.string(), std::strerror(error));
  }
  return true;
}

std::string describe(const LockOwner& holder) {
  return fmt::format("process {} on host {}{}", holder.pid,
                     holder.host.empty() ? "(unknown)" : printable(holder.host),
                     holder.job.empty() ? "" : " (job " + printable(holder.job) + ")");
}

/// Only one process at a time may replace a stale lock: else two that saw the same stale lock could
/// each remove the other's new one.
bool replace_stale(const fs::path& path, const LockOwner& owner, const std::string& text) {
  const fs::path guard = path.string() + ".takeover";
  if (!make_exclusively(guard, text)) return false;
  bool made = false;
  try {
    if (is_stale(from_text(read_text(path)), owner)) {
      ::unlink(path.c_str());
      made = make_exclusively(path, text);
    }
  } catch (const Error&) {
    made = make_exclusively(path, text);  // the holder has left meanwhile
  }
  ::unlink(guard.c_str());
  return made;
}

}  // namespace

LockOwner LockOwner::current() {
  const char* job = std::getenv("SLURM_JOB_ID");
  const char* restart = std::getenv("SLURM_RESTART_COUNT");
  return {host_name(), ::getpid(), start_of_process(::getpid()), job ? job : "",
          restart ? number_or_zero(restart) : 0};
}

RunLock::RunLock(const fs::path& path, const LockOwner& owner)
    : path_(path), text_(to_text(owner)) {
  if (make_exclusively(path_, text_)) return;
  LockOwner holder;
  try {
    holder = from_text(read_text(path_));
  } catch (const Error&) {
    if (make_exclusively(path_, text_)) return;
  }
  if (is_stale(holder, owner) && replace_stale(path_, owner, text_)) return;
  fail(ExitCode::io, "{}: in use by {}; if that process has ended, remove {} and {}.takeover",
       path_.string(), describe(holder), path_.string(), path_.string());
}

RunLock::~RunLock() {
  try {
    if (read_text(path_) == text_) ::unlink(path_.c_str());
  } catch (const Error&) {
    // Gone already, or unreadable: nothing of ours to remove.
  }
}

}  // namespace selfcal
