// What is committed of a job: found by looking at the layer files, never by trusting a list.
#pragma once
#include <string>
#include <vector>

#include "storage/layer_file.hpp"
#include "storage/run_directory.hpp"

namespace selfcal {

enum class LayerState { missing, good, damaged, other_job };

struct CommittedLayer {
  int64_t layer = 0;
  LayerState state = LayerState::missing;
  LayerHeader header;   // of a good layer
  std::string problem;  // one line, where it is damaged or of another job
};

/// Reads layer `number` and checks its number, job and content hash. Independent: ranks may share a
/// scan.
CommittedLayer examine_layer(const JobDirectory& job, int64_t number, const std::string& job_id);
/// Layers 0 .. layers - 1.
std::vector<CommittedLayer> scan_layers(const JobDirectory& job, int64_t layers,
                                        const std::string& job_id);

/// True if `header` continues a job whose layer before has `previous_chain`; without `sequential`
/// propagation, and for layer 0, that is the empty text.
bool follows(const LayerHeader& header, const std::string& previous_chain);

/// A cache for people and tools: rewritten from a scan, never read.
void write_manifest(const JobDirectory& job, const std::string& job_id,
                    const std::vector<CommittedLayer>& layers);

}  // namespace selfcal
