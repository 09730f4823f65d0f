#include "pipeline/writing_ahead.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "comm/agreement.hpp"
#include "pipeline/tensor_message.hpp"

namespace selfcal {
namespace {

constexpr int set_tag = 20;

at::Tensor to_tensor(const std::string& text) {
  const at::Tensor bytes = at::empty({std::ssize(text)}, at::kByte);
  std::ranges::copy(text, bytes.data_ptr<uint8_t>());
  return bytes;
}

std::string to_text(const at::Tensor& bytes) {
  return {reinterpret_cast<const char*>(bytes.data_ptr<uint8_t>()),
          static_cast<size_t>(bytes.numel())};
}

std::vector<std::byte> to_message(const Calibration& set) {
  return pack_tensors({{"content_hash", to_tensor(set.content_hash)},
                       {"tokens", set.tokens},
                       {"tokens_sampled", at::tensor({set.tokens_sampled}, at::kLong)},
                       {"seconds", at::tensor({set.sampling_seconds}, at::kDouble)}});
}

std::vector<std::byte> to_message(const AgreedError& error) {
  return pack_tensors({{"code", at::tensor({static_cast<int64_t>(error.code())}, at::kLong)},
                       {"error", to_tensor(error.what())}});
}

Calibration to_set(std::span<const std::byte> message) {
  const auto tensors = unpack_tensors(message);
  if (tensors.contains("code"))
    throw AgreedError(static_cast<ExitCode>(tensors.at("code").item<int64_t>()),
                      to_text(tensors.at("error")));
  return {to_text(tensors.at("content_hash")), tensors.at("tokens"),
          tensors.at("tokens_sampled").item<int64_t>(), tensors.at("seconds").item<double>()};
}

/// Collective.
void broadcast(const Communicator& ranks, int64_t& number) {
  ranks.broadcast(std::as_writable_bytes(std::span(&number, 1)), 0);
}

}  // namespace

WritingAhead::WritingAhead(const Communicator& world, const SharedStop& stop, int writer,
                           std::vector<Job*> wanted)
    : world_(world),
      stop_(stop),
      writer_(writer),
      wanted_(std::move(wanted)),
      outbox_(world, std::max<size_t>(1, wanted_.size())) {}

void WritingAhead::write(const std::function<void(Job&)>& on_written) {
  for (Job* job : wanted_) {
    std::vector<std::byte> message;
    try {
      message = to_message(prepare_calibration(job->session, [](const auto&, const auto&) {}));
    } catch (const AgreedError& error) {
      message = to_message(error);
    }
    if (world_.rank() == writer_) outbox_.send(std::move(message), 0, set_tag);
    on_written(*job);
  }
}

void WritingAhead::receive(const Communicator& compressors, bool wait) {
  if (world_.rank() == 0) {
    std::optional<Envelope> next;
    const auto has_come = [&] { return (next = world_.probe(set_tag)).has_value(); };
    if (wait)
      world_.wait_until({"calibration set", writer_, set_tag},
                        [&] { return has_come() || stop_.requested(); });
    while (next || has_come()) {
      auto& message = messages_.emplace_back(static_cast<size_t>(next->bytes));
      world_.receive(message, next->source, set_tag).wait();
      next.reset();
    }
  }
  stop_together(compressors, stop_);
  auto come = static_cast<int64_t>(messages_.size());
  broadcast(compressors, come);
  come_ = static_cast<size_t>(come);
}

bool WritingAhead::ready(const Job& job) const {
  const size_t index = index_of(job);
  return index == wanted_.size() || index < come_;
}

std::optional<Calibration> WritingAhead::take(const Communicator& ranks, const Job& job) {
  const size_t index = index_of(job);
  if (index == wanted_.size()) return std::nullopt;
  std::vector<std::byte> message;
  if (ranks.rank() == 0) message = messages_.at(index);
  auto size = static_cast<int64_t>(message.size());
  broadcast(ranks, size);
  if (size == 0) return std::nullopt;
  message.resize(static_cast<size_t>(size));
  ranks.broadcast(message, 0);
  Calibration set = to_set(message);
  if (ranks.rank() == 0) messages_[index] = {};
  return set;
}

size_t WritingAhead::index_of(const Job& job) const {
  const std::string key = forward_key(job.session.config);
  const auto same = [&](const Job* other) { return forward_key(other->session.config) == key; };
  return static_cast<size_t>(std::ranges::find_if(wanted_, same) - wanted_.begin());
}

}  // namespace selfcal
