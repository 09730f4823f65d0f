#include "pipeline/calibration_loss.hpp"

#include <ATen/ATen.h>

#include <cmath>

#include "pipeline/block_reader.hpp"
#include "pipeline/run_blocks.hpp"
#include "pipeline/timed_agreement.hpp"
#include "stages/calibrate/exact_sums.hpp"
#include "stages/evaluate/perplexity.hpp"

namespace selfcal {
namespace {

/// The leaves that are scored, on their way through the blocks of one model after another.
class LossPass {
 public:
  explicit LossPass(const Job& job)
      : session_(job.session), world_(job.session.world), text_(job.calibration.tokens) {
    for (const auto& leaf : job.leaves) {
      if (leaf.index >= leaves_of_loss) continue;
      rows_ += leaf.rows;
      if (leaf.index % world_.size() == world_.rank()) owned_.push_back(leaf);
    }
  }

  int64_t tokens() const { return rows_ * text_.size(1); }

  /// Mean loss of a token.
  double operator()(const char* what, const BlockSource& blocks) const {
    const auto scope = session_.timer.measure(Phase::evaluate);
    const int64_t layers = session_.model.shape().layers;
    session_.progress.start(what, layers, "layers");
    session_.progress.update(0);
    OuterWeights outer;
    HiddenStates hidden;
    agree(world_, session_.timer, [&] {
      if (!owned_.empty()) outer = session_.model.read_outer();
      for (const auto& leaf : owned_)
        hidden.emplace_back(session_.model.embed(text_.narrow(0, leaf.first, leaf.rows), outer));
    });
    BlockReader reader(session_, world_, layers, blocks);
    for (int64_t layer = 0; layer < layers; ++layer) {
      stop_together(world_, session_.stop);
      const BlockWeights weights = reader.read(layer);
      agree(world_, session_.timer, [&] {
        forward_leaves(session_.model.block(layer), place(weights, session_.model.device()),
                       hidden);
      });
      session_.progress.update(layer + 1);
    }
    const double loss = add_up(hidden, outer);
    session_.progress.finish();
    return loss / static_cast<double>(rows_ * (text_.size(1) - 1));
  }

 private:
  /// The hidden state of a token predicts the next token.
  double loss_of(const Leaf& leaf, const at::Tensor& hidden, const OuterWeights& outer) const {
    const int64_t length = text_.size(1);
    double loss = 0;
    for (int64_t row = 0; row < leaf.rows; ++row)
      add_losses(session_.model, hidden[row].slice(0, 0, length - 1),
                 text_[leaf.first + row].slice(0, 1, length).to(at::kLong), outer, session_.context,
                 loss);
    if (!std::isfinite(loss))
      fail(ExitCode::data, "calibration loss: the model's logits are not finite");
    return loss;
  }

  double add_up(const HiddenStates& hidden, const OuterWeights& outer) const {
    ExactSums losses(1);
    agree(world_, session_.timer, [&] {
      for (size_t i = 0; i < owned_.size(); ++i)
        losses.add({loss_of(owned_[i], hidden[i].get(), outer)});
    });
    world_.all_reduce(losses.exponents(), ReduceOp::max);
    losses.count();
    world_.all_reduce(losses.sums(), ReduceOp::sum);
    return losses.at(0);
  }

  const Session& session_;
  const Communicator& world_;
  const at::Tensor& text_;
  int64_t rows_ = 0;  // of all ranks
  std::vector<Leaf> owned_;
};

}  // namespace

CalibrationLossReport CalibrationLosses::measure(const Job& job) {
  const Session& session = job.session;
  const LossPass loss(job);
  const std::string text = forward_key(session.config);
  if (!dense_.contains(text)) dense_[text] = loss("loss dense", dense_blocks(session.model));
  return {
      dense_.at(text),
      loss("loss compressed", compressed_blocks(session.model, session.directory.job(job.name()))),
      loss.tokens()};
}

}  // namespace selfcal
