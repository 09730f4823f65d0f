#include "storage/layer_scan.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.hpp"

namespace selfcal {
namespace {

const char* name_of(LayerState state) {
  switch (state) {
    case LayerState::missing:
      return "missing";
    case LayerState::good:
      return "good";
    case LayerState::damaged:
      return "damaged";
    case LayerState::other_job:
      return "other_job";
  }
  return "?";
}

}  // namespace

CommittedLayer examine_layer(const JobDirectory& job, int64_t number, const std::string& job_id) {
  CommittedLayer layer;
  layer.layer = number;
  const fs::path path = job.layer(number);
  std::error_code error;
  if (!fs::exists(path, error)) return layer;
  try {
    layer.header = check_layer(path);
    if (layer.header.layer != number)
      fail(ExitCode::data, "{}: holds layer {}, expected {}", path.string(), layer.header.layer,
           number);
    layer.state = layer.header.job_id == job_id ? LayerState::good : LayerState::other_job;
    if (layer.state == LayerState::other_job)
      layer.problem =
          fmt::format("{}: of job {}, expected {}", path.string(), layer.header.job_id, job_id);
  } catch (const Error& failure) {
    if (failure.code() == ExitCode::io) throw;
    layer.state = LayerState::damaged;
    layer.problem = failure.what();
  }
  return layer;
}

std::vector<CommittedLayer> scan_layers(const JobDirectory& job, int64_t layers,
                                        const std::string& job_id) {
  std::vector<CommittedLayer> found;
  for (int64_t number = 0; number < layers; ++number)
    found.push_back(examine_layer(job, number, job_id));
  return found;
}

bool follows(const LayerHeader& header, const std::string& previous_chain) {
  return header.chain == chain_hash(header.job_id, previous_chain, header.content_hash);
}

void write_manifest(const JobDirectory& job, const std::string& job_id,
                    const std::vector<CommittedLayer>& layers) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const auto& layer : layers) {
    nlohmann::ordered_json entry{{"layer", layer.layer}, {"state", name_of(layer.state)}};
    if (layer.state == LayerState::good) {
      entry["file"] = "layers/" + job.layer(layer.layer).filename().string();
      entry["content_hash"] = layer.header.content_hash;
      entry["chain"] = layer.header.chain;
    } else if (!layer.problem.empty()) {
      entry["problem"] = layer.problem;
    }
    list.push_back(std::move(entry));
  }
  const auto good = std::count_if(layers.begin(), layers.end(), [](const CommittedLayer& layer) {
    return layer.state == LayerState::good;
  });
  const nlohmann::ordered_json manifest{
      {"schema", 1},
      {"job_id", job_id},
      {"committed", good},
      {"complete", good == static_cast<std::ptrdiff_t>(layers.size())},
      {"layers", std::move(list)}};
  write_text_atomically(
      job.manifest(),
      manifest.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

}  // namespace selfcal
