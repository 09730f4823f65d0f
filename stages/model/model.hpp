// A causal language model of a Hugging Face directory: structure at once, weights a block at a
// time.
#pragma once
#include <memory>
#include <optional>

#include "stages/model/block.hpp"
#include "storage/checkpoint.hpp"

namespace selfcal {

/// What every family has, read from config.json (old and new key names).
struct ModelShape {
  std::string architecture;  // "LlamaForCausalLM"
  int64_t layers = 0;
  int64_t hidden = 0;
  int64_t vocabulary = 0;
  int64_t maximum_length = 0;
  int64_t key_value_heads = 0;
  int64_t head_dim = 0;
  std::optional<int64_t> bos_token;
  std::vector<int64_t> eos_tokens;
  bool tied_embeddings = false;
  at::ScalarType stored_dtype = at::kFloat;  // of the checkpoint
  at::ScalarType compute_dtype =
      at::kFloat;  // bfloat16 stays; float16 computes in float32 on CPUs; `dtype` option overrides
};

/// Tensors outside the blocks, by Hugging Face name: embeddings, final norm, head.
using OuterWeights = std::map<std::string, at::Tensor>;

/// Which of them.
struct OuterParts {
  bool embedding = true;  // what embed() needs
  bool head = true;       // what logits() needs
  bool words = true;      // of these, the table that tokens are looked up in
};

/// Implemented by CausalModel, which one file a family puts together (stages/model/llama.cpp ...);
/// find it by open_model.
class Model {
 public:
  Model(ModelShape shape, std::shared_ptr<const Checkpoint> checkpoint, kernels::Context context)
      : shape_(std::move(shape)), checkpoint_(std::move(checkpoint)), context_(context) {}
  virtual ~Model() = default;

  const ModelShape& shape() const { return shape_; }
  bool has_weights() const { return checkpoint_ != nullptr; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  /// Where embed, blocks and logits compute.
  const kernels::Device& device() const { return context_.device; }
  virtual const Block& block(int64_t layer) const = 0;
  /// "model.layers.7." : prefix of the block's tensor names in the checkpoint.
  virtual std::string block_prefix(int64_t layer) const = 0;

  /// Reads and checks a block's weights, converted to the compute dtype (no copy where it is the
  /// stored one). NaN or infinite entries, wrong shapes and missing tensors are ExitCode::data
  /// naming file and tensor. In host memory: place() brings them to the device.
  BlockWeights read_block(int64_t layer) const;
  /// Tensors outside the blocks, by name, with their shapes.
  virtual std::map<std::string, std::vector<int64_t>> outer_parameters(
      OuterParts parts = {}) const = 0;
  /// In the device's memory; checked and converted as read_block does.
  OuterWeights read_outer(OuterParts parts = {}) const;
  /// Name of the table that embed() looks tokens up in: a row a word.
  virtual std::string word_table() const = 0;
  /// Rows [first, first + count) of it, in the host's memory; checked and converted.
  at::Tensor read_words(int64_t first, int64_t count) const;

  /// tokens int32/int64 [sequences, tokens], or [sequences] with positions int64 [sequences] for
  /// one step, in any memory -> hidden [.., hidden] in the device's. A token is a row of the word
  /// table in `outer`.
  virtual at::Tensor embed(const at::Tensor& tokens, const OuterWeights& outer,
                           const at::Tensor& positions = {}) const = 0;
  /// Final norm and head: hidden [n, hidden] -> float32 logits [n, vocabulary].
  virtual at::Tensor logits(const at::Tensor& hidden, const OuterWeights& outer) const = 0;
  /// An empty cache of one block for `sequences` rows of at most `capacity` tokens.
  KeyValueCache make_cache(int64_t sequences, int64_t capacity) const;

 protected:
  /// From headers: a tensor that is missing, of another shape or not of floats is ExitCode::data.
  void check_entry(const std::string& name, const std::vector<int64_t>& shape) const;
  /// One tensor of the checkpoint, checked and converted as read_block does.
  at::Tensor read_weight(const std::string& name, const std::vector<int64_t>& shape) const;
  /// What the checkpoint holds of a tensor, in the compute dtype; not finite: ExitCode::data.
  at::Tensor converted(const at::Tensor& stored, const std::string& name) const;

  ModelShape shape_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  kernels::Context context_;  // threads and device the blocks compute with
};

/// Integers that are not from 0 to count - 1 are ExitCode::data. `what`: "token ids".
void check_range(const at::Tensor& ids, int64_t count, const char* what);

/// Opens a model directory; every tensor's name, shape and type are checked. `dtype`: "auto" or
/// float32|bfloat16|float16. An unknown architecture lists those supported.
std::unique_ptr<Model> open_model(const fs::path& directory, const std::string& dtype,
                                  kernels::Context context);

/// A model without weights, from the text of its config.json: what plans need. Its checkpoint and
/// what reads from it are not there.
std::unique_ptr<Model> model_of_config(const fs::path& config_json, const std::string& dtype,
                                       kernels::Context context);

}  // namespace selfcal
