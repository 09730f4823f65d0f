// jobs/<name>/model.h5: the whole compressed model in one HDF5 file, written by many ranks at once.
//
// A linear layer that was compressed is a group by its Hugging Face tensor name, with the datasets
// and attributes of its layer file; every other tensor of the model is a dataset by its name. The
// root's attributes say where it came from.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "storage/checkpoint.hpp"
#include "storage/run_directory.hpp"

namespace selfcal {

struct GatherSettings {
  int64_t layers = 0;
  std::string job_id;
  std::map<std::string, std::string>
      provenance;   // attributes of the root: tool version, config, host count ...
  int deflate = 0;  // 0: none; 1 to 9: shuffle and deflate
};

/// Hash over the content hashes of the layers, in their order: what a job as a whole came to.
std::string job_content_hash(const std::vector<std::string>& layer_content_hashes);

/// Collective over `ranks`. The layers are checked by all ranks together, each some; then every
/// rank copies its share of the rows of each tensor, a slab at a time, so that no rank holds the
/// model. Complete or absent: written beside its final place, synced and renamed. Returns the job's
/// content hash.
///
/// Every rank throws the same AgreedError for a layer that is missing, damaged, of another job or
/// does not fit the dense model (ExitCode::data), and for a disk without room, which is looked at
/// before HDF5 begins (ExitCode::io). A failure after that is a plain Error on the rank that meets
/// it: parallel HDF5 cannot go on from there, nor finalise, so the job must end by abort.
std::string gather_checkpoint(const Communicator& ranks, const Checkpoint& dense,
                              const JobDirectory& job, const GatherSettings& settings);

}  // namespace selfcal
