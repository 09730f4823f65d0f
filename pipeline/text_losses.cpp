#include "pipeline/text_losses.hpp"

#include <ATen/ATen.h>

#include <cmath>

#include "pipeline/block_reader.hpp"
#include "pipeline/config.hpp"
#include "pipeline/embedding.hpp"
#include "pipeline/run_blocks.hpp"
#include "pipeline/timed_agreement.hpp"
#include "stages/calibrate/exact_sums.hpp"

namespace selfcal {
namespace {

/// Text on its way through the blocks of one model after another.
class LossPass {
 public:
  /// `text`: on all ranks; `what` is evaluated.
  LossPass(const Session& session, const std::vector<ScoredLeaf>& text, std::string what)
      : session_(session), world_(session.world), what_(std::move(what)) {
    for (size_t i = 0; i < text.size(); ++i) {
      scored_ += text[i].scored();
      if (static_cast<int>(i) % world_.size() == world_.rank()) mine_.push_back(text[i]);
    }
  }

  /// Mean loss of a token.
  double operator()(const char* model, const BlockSource& blocks) const {
    const auto scope = session_.timer.measure(Phase::evaluate);
    const int64_t layers = session_.model.shape().layers;
    session_.progress.start(fmt::format("{} {}", what_, model), layers, "layers");
    session_.progress.update(0);
    std::vector<at::Tensor> rows;
    for (const auto& leaf : mine_) rows.push_back(leaf.tokens);
    HiddenStates hidden;
    for (auto& leaf : embed_together(world_, session_.model, session_.timer, rows))
      hidden.emplace_back(std::move(leaf));
    // The next block travels while the second half is worked on.
    const std::span<HiddenState> leaves(hidden);
    const size_t half = leaves.size() / 2;
    BlockReader reader(session_, world_, layers, blocks);
    for (int64_t layer = 0; layer < layers; ++layer) {
      stop_together(world_, session_.stop);
      const Block& block = session_.model.block(layer);
      const BlockWeights weights = reader.read(layer);
      BlockWeights placed;
      agree(world_, session_.timer, [&] {
        placed = place(weights, session_.model.device());
        forward_leaves(block, placed, leaves.first(half));
      });
      reader.share_ahead();
      agree(world_, session_.timer, [&] { forward_leaves(block, placed, leaves.subspan(half)); });
      session_.progress.update(layer + 1);
    }
    session_.progress.finish();
    return add_up(model, hidden) / static_cast<double>(scored_);
  }

 private:
  double add_up(const char* model, const HiddenStates& hidden) const {
    ExactSums losses(1);
    session_.progress.start(fmt::format("{} {}, scores", what_, model),
                            static_cast<int64_t>(mine_.size()), "leaves of this rank");
    session_.progress.update(0);
    agree(world_, session_.timer, [&] {
      OuterWeights outer;
      if (!mine_.empty()) outer = session_.model.read_outer({.embedding = false});
      for (size_t i = 0; i < mine_.size(); ++i) try {
          losses.add({loss_of(session_.model, mine_[i], hidden[i].get(), outer, session_.context)});
          session_.progress.update(static_cast<int64_t>(i) + 1);
        } catch (const Error& error) {
          fail(error.code(), "{}: {}", what_, error.what());
        }
    });
    session_.progress.finish();
    world_.all_reduce(losses.exponents(), ReduceOp::max);
    losses.count();
    world_.all_reduce(losses.sums(), ReduceOp::sum);
    return losses.at(0);
  }

  const Session& session_;
  const Communicator& world_;
  std::string what_;
  int64_t scored_ = 0;  // tokens of all ranks
  std::vector<ScoredLeaf> mine_;
};

std::vector<ScoredLeaf> beginning_of(const Job& job) {
  std::vector<ScoredLeaf> text;
  for (const auto& leaf : job.leaves)
    if (leaf.index < leaves_of_loss)
      text.push_back({job.calibration.tokens.narrow(0, leaf.first, leaf.rows).to(at::kLong),
                      std::vector<int64_t>(static_cast<size_t>(leaf.rows), 1)});
  return text;
}

}  // namespace

std::vector<ScoredLeaf> evaluation_text(const EvaluateSettings& settings, const ModelShape& shape) {
  if (settings.tokens.empty()) return {};
  if (!fs::exists(settings.tokens))
    fail(ExitCode::data, "evaluate.perplexity.tokens: {}: no such file", settings.tokens);
  try {
    return cut_windows(read_text_tokens(settings.tokens), {settings.window, settings.stride},
                       shape.maximum_length);
  } catch (const Error& error) {
    fail(error.code(), "evaluate.perplexity: {}", error.what());
  }
}

EvaluateSettings with_text_size(EvaluateSettings settings, const ModelShape& shape) {
  const auto text = evaluation_text(settings, shape);
  settings.leaves = static_cast<int64_t>(text.size());
  settings.leaf_tokens = text.empty() ? 0 : text.front().tokens.numel();
  return settings;
}

std::string evaluation_key(const RunConfig& config) {
  const EvaluateSettings& evaluate = config.evaluate;
  return fmt::format("{} {} {} {} {}", evaluate.tokens, evaluate.window, evaluate.stride,
                     config.model.string(), config.dtype);
}

std::optional<PerplexityReport> TextLosses::perplexity(const Job& job) {
  const Session& session = job.session;
  const EvaluateSettings& settings = session.config.evaluate;
  if (settings.tokens.empty()) return std::nullopt;
  std::vector<ScoredLeaf> text;
  agree(session.world, session.timer,
        [&] { text = evaluation_text(settings, session.model.shape()); });
  int64_t windows = 0;
  for (const auto& leaf : text) windows += leaf.tokens.size(0);
  const Losses loss = measure(job, "evaluate", text, evaluation_key(session.config));
  return PerplexityReport{std::exp(loss.dense), std::exp(loss.compressed), settings.tokens, windows,
                          settings.window};
}

CalibrationLossReport TextLosses::of_calibration(const Job& job) {
  const auto text = beginning_of(job);
  int64_t tokens = 0;
  for (const auto& leaf : text) tokens += leaf.tokens.numel();
  const Losses loss = measure(job, "calibration loss", text, forward_key(job.session.config));
  return {loss.dense, loss.compressed, tokens};
}

TextLosses::Losses TextLosses::measure(const Job& job, const char* what,
                                       const std::vector<ScoredLeaf>& text,
                                       const std::string& key) {
  const Session& session = job.session;
  const LossPass loss(session, text, what);
  if (!dense_.contains(key)) dense_[key] = loss("dense", dense_blocks(session.model));
  const JobDirectory folder = session.directory.job(job.name());
  return {dense_.at(key), loss("compressed", compressed_blocks(session.model, folder))};
}

}  // namespace selfcal
