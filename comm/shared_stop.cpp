#include "comm/shared_stop.hpp"

#include <vector>

#include "comm/agreement.hpp"

namespace selfcal {
namespace {

constexpr int stop_tag = 1;

}  // namespace

/// Who has the wish tells rank 0, which tells all: a word to and from each rank at most.
struct SharedStop::State {
  Communicator ranks;
  Activity& activity;
  StopSignal signal;
  bool known = false;
  std::byte word{};
  std::vector<Request> words{};

  void look() {
    if (known) return;
    const bool mine = signal.requested();
    const auto heard = ranks.probe(stop_tag);
    if (!mine && !heard) return;
    known = true;
    if (heard) ranks.receive({&word, 1}, heard->source, stop_tag).wait();
    if (ranks.rank() == 0)
      for (int rank = 1; rank < ranks.size(); ++rank) tell(rank);
    else if (!heard)
      tell(0);
  }

  void tell(int rank) { words.push_back(ranks.send({&word, 1}, rank, stop_tag)); }
};

SharedStop::SharedStop(const Communicator& world, StopSignal signal)
    : state_(new State{world.split(0), world.activity(), signal}) {
  if (world.size() > 1) state_->activity.while_waiting([this] { state_->look(); });
}

SharedStop::~SharedStop() { state_->activity.while_waiting({}); }

bool SharedStop::requested() const {
  state_->look();
  return state_->known;
}

void stop_together(const Communicator& ranks, const SharedStop& stop) {
  if (any(ranks, stop.requested())) throw Stopped();
}

}  // namespace selfcal
