// The one exception of the project: a sentence for the user and the exit code that goes with it.
#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace selfcal {

/// Exit codes of the program (sysexits where one fits).
enum class ExitCode : int {
  done = 0,
  usage = 64,     // the command line is wrong
  data = 65,      // a model, shard or tensor is wrong
  internal = 70,  // our own fault
  io = 74,        // reading or writing failed
  stopped = 75,   // stopped with a checkpoint: run again to go on
  config = 78,    // the configuration is wrong
};

/// An error whose text is one line that a user can act on: file, key or tensor; what was found;
/// what was expected.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& text) : std::runtime_error(text), code_(code) {}
  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

/// Throws Error with a formatted text.
template <class... Args>
[[noreturn]] void fail(ExitCode code, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(code, fmt::format(text, std::forward<Args>(args)...));
}

/// Runs `work`, which agrees with no other rank; the text of an error begins with `place` then.
template <class Work>
void at_place(const std::string& place, const Work& work) try {
  work();
} catch (const Error& error) {
  throw Error(error.code(), place + ": " + error.what());
}

}  // namespace selfcal
