// What a job works with: its own configuration, model and layout, and what all jobs of the run
// share; borrowed from compress().
#pragma once
#include "comm/communicator.hpp"
#include "comm/shared_stop.hpp"
#include "pipeline/config.hpp"
#include "pipeline/layer_compressor.hpp"
#include "pipeline/layout.hpp"
#include "pipeline/phase_timer.hpp"
#include "pipeline/progress.hpp"
#include "stages/model/model.hpp"
#include "storage/run_directory.hpp"

namespace selfcal {

struct Session {
  const RunConfig& config;
  const Model& model;
  const Communicator& world;  // the ranks that work together now, as those of the layout
  const Layout& layout;
  const RunDirectory& directory;
  const SharedStop& stop;
  kernels::Context context;
  std::string numeric_kind;
  PhaseTimer& timer;
  Progress& progress;
  LeafMemory leaf_memory;
  int64_t jobs = 1;             // of the run
  int64_t sampled_at_once = 1;  // micro-batches that share a step
  uint64_t planned_memory = 0;  // bytes of this rank, by the plan
};

}  // namespace selfcal
