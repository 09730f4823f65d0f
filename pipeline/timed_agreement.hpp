// Agreement whose wait for the other ranks is idle time, not part of what this rank did.
#pragma once
#include <functional>
#include <optional>

#include "comm/agreement.hpp"
#include "pipeline/phase_timer.hpp"

namespace selfcal {

/// agree() of comm/agreement.hpp.
inline void agree(const Communicator& ranks, PhaseTimer& timer,
                  const std::function<void()>& local) {
  std::optional<PhaseTimer::Scope> waiting;
  agree(ranks, [&] {
    struct WaitWhenDone {
      std::optional<PhaseTimer::Scope>& waiting;
      PhaseTimer& timer;
      ~WaitWhenDone() { waiting.emplace(timer, Phase::idle); }
    } wait_when_done{waiting, timer};
    local();
  });
}

}  // namespace selfcal
