// jobs/<name>/layers/0007.h5: one committed decoder block, the truth on disk.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>

#include "base/file.hpp"

namespace selfcal {

/// What a solver leaves of one linear layer. Only `weight` is always there; codes, scale and zero
/// come from quantisers, mask from pruners. The dequantised weight is the one that propagation,
/// evaluation and exports use.
struct CompressedLinear {
  at::Tensor weight;  // model dtype [rows, columns]: dequantised or pruned
  at::Tensor codes;   // uint8 [rows, ceil(columns * bits / 8)]: unsigned, low bits first along the
                      // input, original column order
  at::Tensor scale;   // scale dtype [rows, groups]
  at::Tensor zero;    // uint8 [rows, groups]
  at::Tensor g_idx;   // int32 [columns]: group of each column, where groups are not runs of columns
  at::Tensor mask;    // uint8 [rows, ceil(columns / 8)]: 1 = kept, low bits first
  int bits = 0;       // 0: not quantised
  int64_t group_size = 0;  // columns a group; 0: not quantised
  bool symmetric = true;

  // Diagnostics of the solve; stored as attributes, outside the content hash.
  double relative_error = 0;  // tr(E H E^T) / tr(W H W^T)
  double nearest_error = 0;   // the same for round-to-nearest (or magnitude pruning): the control
  double loss = 0;            // tr(E H E^T), H = X^T X / tokens
  double damping = 0;         // fraction of mean(diag H) that was added
  int damping_retries = 0;
  int64_t dead_columns = 0;
  double sparsity = 0;  // share of the weights that were pruned
};

/// One committed block.
struct LayerRecord {
  int64_t layer = 0;
  std::string job_id;
  std::map<std::string, CompressedLinear>
      linears;  // by Hugging Face tensor name, "model.layers.7.mlp.up_proj.weight"
  std::map<std::string, at::Tensor> changed;  // norms and biases that a method rewrote (AWQ)
  std::map<std::string, std::string>
      source_hashes;  // content hash of each dense tensor as it was read

  /// XXH3-128 over sorted (path, dtype, shape, raw bytes) of all stored tensors, and each layer's
  /// bits, group size and symmetry. A weight that has codes is not stored but rebuilt from them, so
  /// only its dtype and shape count.
  std::string content_hash() const;
};

/// chain = hash(job_id, previous chain if sequential, content hash).
std::string chain_hash(const std::string& job_id, const std::string& previous_chain,
                       const std::string& content_hash);

/// Header of a layer file, readable without the tensors.
struct LayerHeader {
  int64_t schema = 1;
  int64_t layer = 0;
  std::string job_id, content_hash, chain;
};

/// A quantised layer's weight must be what dequantise() gives, bit for bit, else
/// ExitCode::internal; its memory is free then. Writes atomically: temporary file, fsync, rename,
/// fsync of the folder. HDF5 failures and full disks: ExitCode::io.
void write_layer(const fs::path& path, LayerRecord record, const std::string& chain);
LayerHeader read_layer_header(const fs::path& path);
/// Reads everything and recomputes the content hash without rebuilding weights: what resuming and
/// verifying need.
LayerHeader check_layer(const fs::path& path);
/// Reads and recomputes the content hash; a mismatch or damaged file is ExitCode::data naming what
/// was found and expected.
/// Without `rebuild_weights`, the weight of a layer with codes is only a stand-in of its dtype and
/// shape, for readers that want the codes.
LayerRecord read_layer(const fs::path& path, bool rebuild_weights = true);
/// The same with a stand-in for every tensor, of its dtype and shape: what the file's header says,
/// checked against no hash.
LayerRecord outline_layer(const fs::path& path);

}  // namespace selfcal
