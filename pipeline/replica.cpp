#include "pipeline/replica.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <deque>
#include <numeric>

#include "pipeline/sizes.hpp"
#include "pipeline/tensor_message.hpp"
#include "stages/generate/side_by_side.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal {
namespace {

constexpr int64_t end_of_slot = -1;  // as a position: no further step comes

LayerRun run_of_rank(const Model& model, const Communicator& ranks) {
  const auto first = decode_runs(sizes_of(model), ranks.size());
  const auto run = static_cast<size_t>(ranks.rank());
  return {first[run], first[run + 1]};
}

/// What travels from rank to rank for one step of one slot: where each row stands, and its values:
/// int64 tokens for the first rank, hidden states for the others.
struct Step {
  at::Tensor positions;  // int64 [micro_batch]
  at::Tensor values;

  bool ends() const { return positions.const_data_ptr<int64_t>()[0] == end_of_slot; }
};

/// One message a slot in each direction: a slot's next message leaves only after its last one has
/// gone round.
class SlotChannel {
 public:
  SlotChannel(const Communicator& ranks, int64_t slots, const Step& like, int peer)
      : ranks_(ranks), peer_(peer), requests_(static_cast<size_t>(slots)) {
    for (int64_t slot = 0; slot < slots; ++slot)
      steps_.push_back({at::empty_like(like.positions), at::empty_like(like.values)});
  }

  /// Both tensors travel with the slot's own tags.
  void send(int64_t slot, const Step& step) {
    auto& [first, second] = requests_[static_cast<size_t>(slot)];
    first.wait();
    second.wait();
    Step& buffer = steps_[static_cast<size_t>(slot)];
    buffer.positions.copy_(step.positions);
    if (step.values.defined()) buffer.values.copy_(step.values);
    first = ranks_.send(bytes_of(buffer.positions), peer_, tag(slot));
    second = ranks_.send(bytes_of(buffer.values), peer_, tag(slot) + 1);
  }

  void post(int64_t slot) {
    Step& buffer = steps_[static_cast<size_t>(slot)];
    requests_[static_cast<size_t>(slot)] = {
        ranks_.receive(bytes_of(buffer.positions), peer_, tag(slot)),
        ranks_.receive(bytes_of(buffer.values), peer_, tag(slot) + 1)};
  }

  bool arrived(int64_t slot) {
    auto& [first, second] = requests_[static_cast<size_t>(slot)];
    return first.done() && second.done();
  }
  const Step& step(int64_t slot) const { return steps_[static_cast<size_t>(slot)]; }

  void finish() {
    for (auto& [first, second] : requests_) {
      first.wait();
      second.wait();
    }
  }

 private:
  static int tag(int64_t slot) { return static_cast<int>(2 * slot); }

  const Communicator& ranks_;
  int peer_;
  std::vector<Step> steps_;
  std::vector<std::pair<Request, Request>> requests_;
};

Step tokens_step(int64_t rows) {
  return {at::empty({rows}, at::kLong), at::empty({rows}, at::kLong)};
}
Step hidden_step(int64_t rows, const ModelShape& shape) {
  return {at::empty({rows}, at::kLong), at::empty({rows, shape.hidden}, shape.compute_dtype)};
}
Step last_step(int64_t rows) { return {at::full({rows}, end_of_slot, at::kLong), {}}; }

/// The slots in turn, each until it has ended.
std::deque<int64_t> all_slots(int64_t slots) {
  std::deque<int64_t> turn(static_cast<size_t>(slots));
  std::iota(turn.begin(), turn.end(), int64_t{0});
  return turn;
}

/// The next step of the slot, which must have been asked for.
const Step& receive(const Communicator& ranks, SlotChannel& channel, int64_t slot,
                    PhaseTimer& timer, const std::function<void()>& while_waiting) {
  const auto scope = timer.measure(Phase::idle);
  ranks.wait_until({"step of a replica"}, [&] {
    while_waiting();
    return channel.arrived(slot);
  });
  return channel.step(slot);
}

}  // namespace

Replica::Replica(Communicator ranks, const Model& model, const CalibrationSettings& settings,
                 kernels::Context context, PhaseTimer& timer, int64_t at_once)
    : ranks_(std::move(ranks)),
      model_(model),
      rules_(settings, model.shape()),
      at_once_(at_once),
      rows_(at_once * settings.micro_batch),
      context_(context),
      timer_(timer),
      decoder_(model, rows_, settings.length, run_of_rank(model, ranks_), ranks_.size()) {}

void Replica::sample(const std::vector<int64_t>& batches,
                     const std::function<void(MicroBatch)>& on_finished,
                     const std::function<bool(int64_t)>& poll) {
  const auto steps = kernels::ceil_divide(std::ssize(batches), at_once_);
  const auto slots = std::min<int64_t>(ranks_.size(), steps);
  if (decoder_.ends())
    write(batches, slots, on_finished, poll);
  else
    pass_on(slots, poll);
}

void Replica::pass_on(int64_t slots, const std::function<bool(int64_t)>& poll) {
  const bool first = decoder_.begins();
  const int next = ranks_.rank() + 1, last = ranks_.size() - 1;
  const Step hidden_like = hidden_step(rows_, model_.shape());
  SlotChannel in(ranks_, slots, first ? tokens_step(rows_) : hidden_like,
                 first ? last : ranks_.rank() - 1);
  SlotChannel out(ranks_, slots, hidden_like, next);
  auto turn = all_slots(slots);
  for (const int64_t slot : turn) in.post(slot);
  while (!turn.empty()) {
    const int64_t slot = turn.front();
    turn.pop_front();
    const Step& step = receive(ranks_, in, slot, timer_, [&] { poll(0); });
    if (step.ends()) {
      if (next != last) out.send(slot, last_step(rows_));  // the last rank knows
      continue;
    }
    const at::Tensor hidden = first ? decoder_.embed({step.values, step.positions}) : step.values;
    out.send(slot, {step.positions, decoder_.step(hidden, step.positions, slot)});
    in.post(slot);
    turn.push_back(slot);
  }
  out.finish();
}

void Replica::write(std::span<const int64_t> waiting, int64_t slots,
                    const std::function<void(MicroBatch)>& on_finished,
                    const std::function<bool(int64_t)>& poll) {
  SlotChannel in(ranks_, slots, hidden_step(rows_, model_.shape()), ranks_.rank() - 1);
  SlotChannel out(ranks_, slots, tokens_step(rows_), 0);
  std::vector<SideBySide> batches;
  for (int64_t slot = 0; slot < slots; ++slot) batches.emplace_back(rules_, at_once_);
  bool stopping = false;

  const auto poll_all = [&] {
    int64_t written = 0;
    for (const auto& of_slot : batches) written += of_slot.written();
    stopping = poll(written) || stopping;
  };
  // Asks for the next step of a slot; true if there is one.
  const auto go_on = [&](int64_t slot) {
    SideBySide& mine = batches[static_cast<size_t>(slot)];
    if (!stopping) waiting = waiting.subspan(mine.begin(waiting));
    if (stopping || mine.empty()) {
      out.send(slot, last_step(rows_));
      return false;
    }
    const StepInput& input = mine.input();
    in.post(slot);
    out.send(slot, {input.positions, input.tokens});
    return true;
  };

  std::deque<int64_t> turn;
  for (const int64_t slot : all_slots(slots))
    if (go_on(slot)) turn.push_back(slot);
  while (!turn.empty()) {
    const int64_t slot = turn.front();
    turn.pop_front();
    const Step& step = receive(ranks_, in, slot, timer_, poll_all);
    batches[static_cast<size_t>(slot)].advance(
        context_, decoder_.logits(decoder_.step(step.values, step.positions, slot)), on_finished);
    if (go_on(slot)) turn.push_back(slot);
  }
  out.finish();
}

}  // namespace selfcal
