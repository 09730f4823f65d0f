#include "pipeline/outliers.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/log.hpp"
#include "pipeline/block_reader.hpp"
#include "pipeline/embedding.hpp"
#include "pipeline/leaf_states.hpp"
#include "pipeline/timed_agreement.hpp"
#include "stages/calibrate/column_norms.hpp"
#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/layer_sparsity.hpp"

namespace selfcal {
namespace {

using Counts = std::vector<OutlierCount>;  // by layer

/// What a job compares in one block.
struct Weighed {
  Counts* counts = nullptr;
  double m = 0;
  std::vector<const Linear*> linears;
};

std::vector<const Linear*> weighed_linears(const Job& job, int64_t layer) {
  const Model& model = job.session.model;
  std::vector<const Linear*> linears;
  for (const auto& linear : model.block(layer).spec().linears) {
    const auto settings =
        settings_for(job.session.config, model.block_prefix(layer) + linear.name + ".weight");
    if (settings && settings->sparsity.by_outliers) linears.push_back(&linear);
  }
  return linears;
}

fs::path file_of(const Job& job) {
  return job.session.directory.job(job.name()).path() / "outliers.json";
}

void write_counts(const Job& job, const Counts& counts) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (size_t layer = 0; layer < counts.size(); ++layer)
    layers.push_back({{"layer", layer},
                      {"outliers", counts[layer].outliers},
                      {"entries", counts[layer].entries},
                      {"sparsity", job.block_sparsity[layer]}});
  const nlohmann::ordered_json file{{"schema", 1}, {"job_id", job.id}, {"layers", layers}};
  write_text_atomically(file_of(job), file.dump(1) + "\n");
}

/// What an earlier run has counted for this job; nothing where that is not whole.
std::optional<Counts> read_counts(const Job& job) {
  if (!fs::exists(file_of(job))) return std::nullopt;
  try {
    const auto file = nlohmann::json::parse(read_text(file_of(job)));
    if (file.at("schema") != 1 || file.at("job_id") != job.id) return std::nullopt;
    Counts counts;
    for (const auto& layer : file.at("layers"))
      counts.push_back({layer.at("outliers").get<int64_t>(), layer.at("entries").get<int64_t>()});
    const bool whole = std::ranges::all_of(counts, [](const OutlierCount& count) {
      return count.outliers >= 0 && count.outliers <= count.entries;
    });
    if (whole && std::ssize(counts) == job.session.model.shape().layers) return counts;
  } catch (const nlohmann::json::exception&) {
  }
  log::warn("{}: damaged; outliers will be counted again", file_of(job).string());
  return std::nullopt;
}

/// Rank 0 reads, all know. Collective.
std::optional<Counts> read_together(const Job& job) {
  const Communicator& world = job.session.world;
  Counts counts(static_cast<size_t>(job.session.model.shape().layers), {-1, -1});
  agree(world, [&] {
    if (world.rank() == 0) counts = read_counts(job).value_or(counts);
  });
  world.broadcast(std::as_writable_bytes(std::span(counts)), 0);
  if (counts.empty() || counts.front().entries < 0) return std::nullopt;
  return counts;
}

class DensePass {
 public:
  DensePass(const Session& session, const std::vector<Leaf>& leaves, const at::Tensor& tokens)
      : session_(session), world_(session.world), tokens_(tokens) {
    for (const auto& leaf : leaves)
      if (leaf.index % world_.size() == world_.rank()) owned_.push_back(leaf);
  }

  /// Fills the counts of each job.
  void run(const std::vector<std::pair<Job*, Counts*>>& jobs) {
    const int64_t layers = session_.model.shape().layers;
    session_.progress.start("outliers", layers, "layers");
    session_.progress.update(0);
    embed();
    BlockReader reader(session_, world_, layers);
    for (int64_t layer = 0; layer < layers; ++layer) {
      stop_together(world_, session_.stop);
      const BlockWeights weights = reader.read(layer);
      std::vector<Weighed> all;
      for (const auto& [job, counts] : jobs)
        all.push_back(
            {counts, job->session.config.method.sparsity.owl.m, weighed_linears(*job, layer)});
      const auto norms = norms_of(layer, weights, all);
      reader.share_ahead();
      for (const auto& weighed : all)
        weighed.counts->at(static_cast<size_t>(layer)) = count(weighed, weights, norms);
      session_.progress.update(layer + 1);
    }
    session_.progress.finish();
  }

 private:
  using Norms = std::map<int, at::Tensor>;  // by tap

  void embed() {
    hidden_ = embed_together(world_, session_.model, session_.timer, rows_of(tokens_, owned_));
  }

  /// Passes the leaves through the block, one after the other.
  Norms norms_of(int64_t layer, const BlockWeights& weights, const std::vector<Weighed>& all) {
    const Block& block = session_.model.block(layer);
    std::map<int, ColumnNorms> norms;
    for (const auto& weighed : all)
      for (const auto* linear : weighed.linears)
        norms.try_emplace(linear->tap, linear->columns, session_.context);
    const auto forward = session_.timer.measure(Phase::forward);
    agree(world_, session_.timer, [&] {
      const BlockWeights placed = place(weights, session_.model.device());
      for (auto& leaf : hidden_) {
        State state = block.begin(leaf, placed);
        for (int stage = 0; stage < block.spec().stages; ++stage) {
          add_taps(layer, stage, state, norms);
          state = block.advance(std::move(state), stage, placed);
        }
        leaf = block.finish(std::move(state));
      }
    });
    const auto reduce = session_.timer.measure(Phase::reduce);
    Norms finished;
    for (auto& [tap, columns] : norms) {
      world_.all_reduce(columns.exponents(), ReduceOp::max);
      columns.count();
      world_.all_reduce(columns.sums(), ReduceOp::sum);
      finished[tap] = columns.finish(tokens_.numel());
    }
    return finished;
  }

  void add_taps(int64_t layer, int stage, const State& state, std::map<int, ColumnNorms>& norms) {
    const auto scope = session_.timer.measure(Phase::statistics);
    const auto& taps = session_.model.block(layer).spec().taps;
    for (auto& [index, columns] : norms) {
      const Tap& tap = taps.at(static_cast<size_t>(index));
      if (tap.stage == stage)
        at_place(input_name(session_.model, layer, index),
                 [&, &added = columns] { added.add(state.at(tap.name).to(at::kCPU)); });
    }
  }

  /// A run of rows of one layer that a task compares; the cut follows the shapes only.
  struct Tile {
    at::Tensor weight;
    const at::Tensor* norms;
  };

  OutlierCount count(const Weighed& weighed, const BlockWeights& weights, const Norms& norms) {
    const auto scope = session_.timer.measure(Phase::statistics);
    std::vector<Tile> tiles;
    OutlierCount total;
    for (const auto* linear : weighed.linears) {
      const at::Tensor weight = weights.at(linear->name + ".weight").to(at::kCPU);
      total.entries += weight.numel();
      for (int64_t first = 0; first < linear->rows; first += solve_row_tile)
        tiles.push_back({weight.narrow(0, first, std::min(solve_row_tile, linear->rows - first)),
                         &norms.at(linear->tap)});
    }
    if (tiles.empty()) return total;
    // A sum is exact as the bits of one rank's number and zeros of the others; then all add the
    // numbers up in the order of the tiles.
    double sum = 0;
    for (const int64_t bits : over_ranks(tiles, [](const Tile& tile) {
           return std::bit_cast<int64_t>(sum_of_scores(tile.weight, *tile.norms));
         }))
      sum += std::bit_cast<double>(bits);
    const double threshold = weighed.m * sum / static_cast<double>(total.entries);
    for (const int64_t above : over_ranks(tiles, [&](const Tile& tile) {
           return scores_above(tile.weight, *tile.norms, threshold);
         }))
      total.outliers += above;
    return total;
  }

  /// A number of each tile, found by one rank, known to all.
  std::vector<int64_t> over_ranks(const std::vector<Tile>& tiles,
                                  const std::function<int64_t(const Tile&)>& number) {
    std::vector<int64_t> numbers(tiles.size());
    agree(world_, session_.timer, [&] {
      kernels::for_tiles(session_.context, std::ssize(tiles), [&](int64_t i) {
        if (i % world_.size() == world_.rank()) numbers[i] = number(tiles[i]);
      });
    });
    const auto scope = session_.timer.measure(Phase::reduce);
    world_.all_reduce(std::span(numbers), ReduceOp::sum);
    return numbers;
  }

  const Session& session_;
  const Communicator& world_;
  const at::Tensor& tokens_;
  std::vector<Leaf> owned_;
  std::vector<at::Tensor> hidden_;
};

bool asks(const Job& job) {
  for (int64_t layer = 0; layer < job.session.model.shape().layers; ++layer)
    if (!weighed_linears(job, layer).empty()) return true;
  return false;
}

}  // namespace

void weigh_blocks(std::deque<Job>& jobs, const Job& front) {
  const std::string key = forward_key(front.session.config);
  std::vector<std::pair<Job*, Counts>> counted, open;
  for (Job& job : jobs) {
    const bool waits = !job.failure && !job.finished && job.block_sparsity.empty();
    if (!waits || forward_key(job.session.config) != key || !asks(job)) continue;
    job.id = job_id(job.session, front.calibration.content_hash);
    if (auto counts = read_together(job))
      counted.emplace_back(&job, std::move(*counts));
    else
      open.emplace_back(&job, Counts(static_cast<size_t>(job.session.model.shape().layers)));
  }
  if (!open.empty()) {
    std::vector<std::pair<Job*, Counts*>> asking;
    for (auto& [job, counts] : open) asking.emplace_back(job, &counts);
    DensePass(front.session, front.leaves, front.calibration.tokens).run(asking);
  }
  for (auto* list : {&counted, &open})
    for (auto& [job, counts] : *list) {
      const Sparsity& sparsity = job->session.config.method.sparsity;
      job->block_sparsity = owl_sparsity(counts, sparsity.share, sparsity.owl.lambda);
    }
  if (open.empty()) return;
  agree(front.session.world, [&] {
    if (front.session.world.rank() != 0) return;
    for (const auto& [job, counts] : open) write_counts(*job, counts);
  });
}

}  // namespace selfcal
