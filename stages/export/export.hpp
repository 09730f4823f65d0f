// From a finished job to a Hugging Face model directory.
#pragma once
#include <cstdint>
#include <string>

#include "comm/communicator.hpp"
#include "storage/checkpoint.hpp"
#include "storage/run_directory.hpp"

namespace selfcal {

/// compressed_tensors: packed codes that vLLM and transformers load (format pack-quantized).
/// gptq, gptq_v2, awq: the checkpoint formats of GPTQ (versions 1 and 2) and AutoAWQ (gemm), with
/// scales in float16. dense: the dequantised or pruned weights as an ordinary model.
enum class ExportFormat { compressed_tensors, gptq, gptq_v2, awq, dense };

/// "compressed-tensors", "gptq", "gptq_v2", "awq", "dense"; another name is ExitCode::config and
/// lists those there are.
ExportFormat export_format_of(const std::string& name);

/// What an export reads.
struct ExportInputs {
  const Checkpoint& dense;  // the model that was compressed
  JobDirectory job;         // whose layers are all committed
  int64_t layers = 0;
  std::string job_id;
};

/// Collective over `ranks`, each of which packs and writes some layers, and some rows of what is in
/// none; the files are the same for any number of them. Writes `directory`: config.json,
/// safetensors in shards of at most `shard_bytes` (a larger tensor stands alone), and every other
/// file of the dense model's directory except weights. A rank holds a layer in memory at a time.
/// Loaded in the dtype that config.json names, every weight is bit for bit the one that propagation
/// used (gptq, gptq_v2, awq: but for the rounding of the loader's own arithmetic, which is
/// float16's in most). Complete or absent: written beside `directory`, synced and renamed.
///
/// Every rank throws the same AgreedError. A directory that exists is ExitCode::usage. What the
/// format cannot hold is ExitCode::config: nothing quantised, or scales that the model's dtype
/// cannot represent. Layers that are missing or damaged are ExitCode::data.
void export_model(const Communicator& ranks, const ExportInputs& inputs, ExportFormat format,
                  const fs::path& directory, uint64_t shard_bytes = 5'000'000'000);

}  // namespace selfcal
