#include "pipeline/job.hpp"

#include "base/hash.hpp"
#include "base/log.hpp"
#include "comm/agreement.hpp"
#include "storage/layer_scan.hpp"

namespace selfcal {

bool Job::measures_loss() const {
  return selfcal::measures_loss(session.config, beside != nullptr);
}

bool Job::complete() const {
  std::string chain;
  for (const auto& header : committed) {
    if (!header || !follows(*header, chain)) return false;
    if (sequential()) chain = header->chain;
  }
  return !committed.empty();
}

std::string job_id(const Session& session, const std::string& calibration_hash) {
  return Hasher()
      .text(session.model.checkpoint().identity())
      .text(calibration_hash)
      .text(identity(session.config))
      .text(session.numeric_kind)
      .digest();
}

std::vector<std::optional<LayerHeader>> scan_committed(const Session& session,
                                                       const std::string& id) {
  std::vector<std::optional<LayerHeader>> committed(
      static_cast<size_t>(session.model.shape().layers));
  constexpr size_t digits = 32;
  std::string hashes(committed.size() * 2 * digits, '-');
  agree(session.world, [&] {
    if (session.world.rank() != 0) return;
    const JobDirectory folder = session.directory.job(session.config.name);
    remove_unfinished(folder.layers());
    const auto layers = scan_layers(folder, session.model.shape().layers, id);
    for (const auto& layer : layers) {
      if (layer.state == LayerState::other_job)
        fail(ExitCode::config,
             "{}; the model, the calibration set or the kind of machine has changed: choose "
             "another output",
             layer.problem);
      if (layer.state == LayerState::damaged)
        log::warn("{}; this layer will be compressed again", layer.problem);
      if (layer.state == LayerState::good)
        hashes.replace(static_cast<size_t>(layer.layer) * 2 * digits, 2 * digits,
                       layer.header.content_hash + layer.header.chain);
    }
    write_manifest(folder, id, layers);
  });
  session.world.broadcast(std::as_writable_bytes(std::span(hashes)), 0);
  for (size_t layer = 0; layer < committed.size(); ++layer) {
    const std::string both = hashes.substr(layer * 2 * digits, 2 * digits);
    if (both.front() == '-') continue;
    committed[layer] = LayerHeader{};
    committed[layer]->layer = static_cast<int64_t>(layer);
    committed[layer]->job_id = id;
    committed[layer]->content_hash = both.substr(0, digits);
    committed[layer]->chain = both.substr(digits);
  }
  return committed;
}

void TimeAccount::charge(std::span<Job* const> jobs) {
  const PhaseSeconds now = timer_.seconds();
  for (Job* job : jobs)
    for (size_t phase = 0; phase < now.size(); ++phase)
      job->seconds[phase] += (now[phase] - charged_[phase]) / static_cast<double>(jobs.size());
  charged_ = now;
}

}  // namespace selfcal
