// The hidden states of a rank's leaves at the edge of a block, some of which may still be on their
// way from the rank that computed them.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <vector>

namespace selfcal {

/// One leaf's; copies share it.
class HiddenState {
 public:
  HiddenState() = default;
  /// It is there: [rows, tokens, hidden], in the device's memory.
  HiddenState(at::Tensor hidden) : slot_(std::make_shared<Slot>(Slot{std::move(hidden), {}})) {}
  /// arrive() waits for it, and is called until it has returned once.
  explicit HiddenState(std::function<at::Tensor()> arrive)
      : slot_(std::make_shared<Slot>(Slot{{}, std::move(arrive)})) {}

  /// Waits while it is on its way; throws what that wait throws, Stopped where a stop is wished
  /// for. So it is called where errors are agreed on.
  const at::Tensor& get() const {
    if (slot_->arrive) {
      slot_->hidden = slot_->arrive();
      slot_->arrive = {};
    }
    return slot_->hidden;
  }

 private:
  struct Slot {
    at::Tensor hidden;
    std::function<at::Tensor()> arrive;
  };
  std::shared_ptr<Slot> slot_;
};

/// In the order of the rank's leaves.
using HiddenStates = std::vector<HiddenState>;

}  // namespace selfcal
