// What an export will hold, learned from the headers of the layer files.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "stages/export/export.hpp"
#include "stages/export/layers.hpp"

namespace selfcal {

struct Survey {
  std::vector<std::pair<std::string, TensorEntry>>
      plan;                         // layers in their order, then what none of them holds
  std::vector<std::string> copied;  // tensors taken from the dense model as they are
  std::map<std::string, compressed_tensors::Scheme> quantised;  // by module
  std::vector<std::string> plain;       // modules whose weight matrix stays dense
  std::optional<at::ScalarType> dtype;  // of the compressed layers
};

/// Errors as those of export_model().
Survey survey_job(const ExportInputs& inputs, Layers& layers);

/// Collective: `plan` and `copied` of the first rank's survey, on all, which then write by it.
void share_plan(const Communicator& ranks, Survey& survey);

}  // namespace selfcal
