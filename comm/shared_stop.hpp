// A wish to stop that one rank has and all come to know of, while they work or wait.
#pragma once
#include <memory>

#include "base/stop_signal.hpp"
#include "comm/communicator.hpp"

namespace selfcal {

class SharedStop {
 public:
  /// Collective over `world`, which is borrowed: the wish travels on a communicator of its own. It
  /// is listened for while a rank waits for others, too.
  SharedStop(const Communicator& world, StopSignal signal);
  ~SharedStop();
  SharedStop(const SharedStop&) = delete;
  SharedStop& operator=(const SharedStop&) = delete;

  /// Whether this rank wants to stop or has heard that another one does; once true it stays so. To
  /// be called now and then, by the main thread: rank 0 passes on what it hears when it is asked.
  bool requested() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Collective over `ranks`: throws Stopped on all of them when one knows of the wish.
void stop_together(const Communicator& ranks, const SharedStop& stop);

}  // namespace selfcal
