#include "base/stop_signal.hpp"

#include <csignal>

namespace selfcal {
namespace {

volatile std::sig_atomic_t signalled = 0;  // the only state that a signal handler may touch

void remember(int) { signalled = 1; }

}  // namespace

StopSignal::StopSignal(std::optional<double> max_hours) {
  for (int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2}) std::signal(signal, remember);
  if (max_hours)
    deadline_ = std::chrono::steady_clock::now() +
                std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                    std::chrono::duration<double>(*max_hours * 3600.0));
}

bool StopSignal::requested() const {
  return signalled != 0 || (deadline_ && std::chrono::steady_clock::now() >= *deadline_);
}

}  // namespace selfcal
