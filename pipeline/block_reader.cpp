#include "pipeline/block_reader.hpp"

#include <ATen/ATen.h>

#include <chrono>

#include "pipeline/tensor_exchange.hpp"
#include "pipeline/timed_agreement.hpp"

namespace selfcal {

BlockReader::~BlockReader() {
  if (!shared_) return;
  try {
    finish_sharing();
  } catch (const std::exception&) {  // the run ends with an error of its own
  }
}

BlockWeights BlockReader::read(int64_t layer) {
  const auto scope = timer_.measure(Phase::read);
  next_ = layer;
  if (!shared_) {
    BlockWeights weights;
    agree(team_, timer_, [&] {
      if (team_.rank() == 0) weights = ahead_.valid() ? ahead_.get() : source_(layer);
    });
    begin_sharing(std::move(weights));
  }
  BlockWeights weights = finish_sharing();
  ++next_;
  read_ahead();
  return weights;
}

void BlockReader::share_ahead() {
  if (team_.size() == 1 || next_ >= end_) return;
  if (shared_) {
    for (auto& request : shared_->requests) request.done();  // MPI gets on when it is called
    return;
  }
  if (!any(team_, has_read_ahead())) return;
  const auto scope = timer_.measure(Phase::read);
  begin_sharing(team_.rank() == 0 ? ahead_.get() : BlockWeights());
}

void BlockReader::read_ahead() {
  ahead_ = {};
  if (team_.rank() != 0 || next_ >= end_) return;
  ahead_ = std::async(std::launch::async, [this, layer = next_] {
    kernels::use_one_library_thread();
    return source_(layer);
  });
}

bool BlockReader::has_read_ahead() const try {
  return ahead_.valid() && ahead_.wait_for(std::chrono::seconds(0)) == std::future_status::ready &&
         !ahead_.get().empty();
} catch (const std::exception&) {
  return false;
}

/// By NCCL into the devices' memory, or by MPI into the host's.
void BlockReader::begin_sharing(BlockWeights weights) {
  shared_.emplace();
  shared_->weights = std::move(weights);
  if (team_.size() == 1) return;
  const at::Device memory = reaches_devices(team_, device_) ? device_.memory : at::kCPU;
  const auto options = at::device(memory).dtype(model_.shape().compute_dtype);
  for (const auto& [name, shape] : model_.block(next_).spec().parameters) {
    at::Tensor there;
    if (team_.rank() == 0)
      shared_->sent.push_back(there = shared_->weights.at(name).to(memory));
    else
      shared_->weights[name] = there = at::empty(shape, options);
    shared_->requests.push_back(begin_broadcast(team_, there, 0, device_));
  }
}

BlockWeights BlockReader::finish_sharing() {
  for (auto& request : shared_->requests) request.wait();
  BlockWeights weights = std::move(shared_->weights);
  shared_.reset();
  return weights;
}

}  // namespace selfcal
