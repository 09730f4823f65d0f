// The decoder block as every stage sees it: generation, pipeline depth, statistics, true-sequential
// solving, AWQ.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "stages/kernels/ops.hpp"
#include "stages/model/key_value_cache.hpp"

namespace selfcal {

/// One linear layer: weight [rows, columns] = [out, in].
struct Linear {
  std::string name;  // within the block: "self_attn.q_proj"
  int64_t rows = 0;
  int64_t columns = 0;
  int tap = 0;    // index into BlockSpec::taps: the input it reads; layers of one tap share their
                  // statistics
  int stage = 0;  // layers of one stage are compressed together, before the next stage's inputs are
                  // computed
};

/// An input that linear layers read: a named tensor [tokens, columns] of State, there before
/// `stage` is advanced.
struct Tap {
  std::string name;
  int64_t columns = 0;
  int stage = 0;
};

/// Scales may move from `producer` (a norm or a linear layer) into `consumers` (AWQ).
struct ScalePair {
  std::string producer;
  std::vector<std::string> consumers;
  std::string inspected;     // whose output the search compares: a linear layer's name, a module's
                             // ("self_attn", "mlp"), or "block", both together
  double norm_offset = 0.0;  // 1 where the norm multiplies by (1 + weight)
};

struct BlockSpec {
  std::vector<Linear> linears;
  std::vector<Tap> taps;
  std::vector<ScalePair> scale_pairs;
  std::map<std::string, std::vector<int64_t>>
      parameters;  // every tensor of the block, by name within the block, with its shape
  int stages = 0;
};

/// Tensors of one block by name within the block: "self_attn.q_proj.weight",
/// "input_layernorm.weight".
using BlockWeights = std::map<std::string, at::Tensor>;

/// All that survives between the stages of one leaf, by name. Taps are among them.
using State = std::map<std::string, at::Tensor>;

/// Structure without weights, for tensors in the device's memory: each call is given the weights to
/// use, so that a stage can be run dense or compressed. Independent (no communication); results
/// depend on the arguments' values and shapes only, not on threads.
class Block {
 public:
  virtual ~Block() = default;
  virtual const BlockSpec& spec() const = 0;

  /// hidden: [sequences, tokens, hidden] in the compute dtype. The state has the taps of stage 0.
  virtual State begin(const at::Tensor& hidden, const BlockWeights& weights) const = 0;
  /// Computes the outputs of the linear layers of `stage`, and what follows up to the taps of the
  /// next stage.
  virtual State advance(State state, int stage, const BlockWeights& weights) const = 0;
  /// The block's output, [sequences, tokens, hidden].
  virtual at::Tensor finish(State state) const = 0;

  /// What a scale pair's inspected module gives, [tokens, hidden], before any norm of it and the
  /// residual. `state`: as it is when the pair's tap is read. An unknown module is
  /// ExitCode::internal.
  virtual at::Tensor output_of(const std::string& module, const State& state,
                               const BlockWeights& weights) const = 0;

  /// One token for each sequence: hidden [sequences, hidden], positions int64 [sequences] (a
  /// sequence whose position is p reads cache entries 0..p, entry p is written here).
  virtual at::Tensor step(const at::Tensor& hidden, const at::Tensor& positions,
                          KeyValueCache& cache, const BlockWeights& weights) const = 0;
};

/// The weights in the device's memory; tensors that are there already are not copied.
BlockWeights place(const BlockWeights& weights, const kernels::Device& device);

/// begin, every stage, finish.
at::Tensor forward(const Block& block, const at::Tensor& hidden, const BlockWeights& weights);

}  // namespace selfcal
