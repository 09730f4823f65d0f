#include "pipeline/calibration.hpp"

#include <ATen/ATen.h>

#include <chrono>
#include <map>

#include "base/hash.hpp"
#include "comm/agreement.hpp"
#include "pipeline/sampling.hpp"
#include "pipeline/tensor_message.hpp"

namespace selfcal {
namespace {

/// Sampled micro-batches as they arrive on rank 0, each committed to disk so that a resumed run
/// does not sample it again.
class ArrivedBatches {
 public:
  ArrivedBatches(const CalibrationSettings& settings, fs::path folder)
      : settings_(settings), folder_(std::move(folder)) {
    if (!fs::exists(folder_)) return;
    for (int64_t index = 0; index < micro_batches(settings); ++index) {
      if (!fs::exists(file(index))) continue;
      const CalibrationSet part = read_calibration(file(index));
      batches_[index] = {index, part.tokens, part.log_prob, part.temperature};
    }
  }

  void add(const MicroBatch& batch) {
    make_folder(folder_);
    write_calibration(file(batch.index), to_set({batch}));
    batches_[batch.index] = batch;
  }

  std::vector<int64_t> indices() const {
    std::vector<int64_t> list;
    for (const auto& [index, batch] : batches_) list.push_back(index);
    return list;
  }

  CalibrationSet whole() const {
    std::vector<MicroBatch> ordered;
    for (const auto& [index, batch] : batches_) ordered.push_back(batch);
    return to_set(ordered);
  }

 private:
  fs::path file(int64_t index) const { return folder_ / fmt::format("{:04}.h5", index); }

  CalibrationSet to_set(const std::vector<MicroBatch>& batches) const {
    std::vector<at::Tensor> tokens, log_prob, temperature;
    for (const auto& batch : batches) {
      tokens.push_back(batch.tokens);
      log_prob.push_back(batch.log_prob);
      temperature.push_back(batch.temperature);
    }
    CalibrationSet set;
    set.tokens = at::cat(tokens);
    set.lengths = at::full({set.tokens.size(0)}, settings_.length, at::kInt);
    set.log_prob = at::cat(log_prob);
    set.temperature = at::cat(temperature);
    set.source = "self";
    set.settings = settings_.identity();
    set.seed = settings_.seed;
    set.set = settings_.set;
    return set;
  }

  const CalibrationSettings& settings_;
  fs::path folder_;
  std::map<int64_t, MicroBatch> batches_;
};

std::string calibration_id(const Session& session) {
  const auto& settings = session.config.calibration;
  Hasher hasher;
  hasher.text(settings.identity());
  if (settings.source == CalibrationSource::self)
    hasher.text(session.model.checkpoint().identity())
        .text(session.numeric_kind)
        .number(static_cast<int64_t>(session.model.shape().compute_dtype));
  else
    hasher.number(session.model.shape().vocabulary);
  if (settings.source == CalibrationSource::tokens)
    hasher.text(read_token_source(settings, session.model.shape()).content_hash());
  return hasher.digest().substr(0, 16);
}

/// Collective. The whole set on rank 0.
CalibrationSet sample_set(
    const Session& session, const fs::path& parts, Calibration& calibration,
    const std::function<void(const MicroBatch&, const Generator&)>& on_sampled) {
  const auto& settings = session.config.calibration;
  std::unique_ptr<ArrivedBatches> arrived;
  std::vector<int64_t> done(static_cast<size_t>(micro_batches(settings)), 0);
  agree(session.world, [&] {
    if (session.world.rank() != 0) return;
    arrived = std::make_unique<ArrivedBatches>(settings, parts);
    for (const int64_t index : arrived->indices()) done[static_cast<size_t>(index)] = 1;
  });
  session.world.all_reduce(std::span(done), ReduceOp::max);
  std::set<int64_t> done_set;
  for (size_t index = 0; index < done.size(); ++index)
    if (done[index]) done_set.insert(static_cast<int64_t>(index));

  const int64_t tokens_a_batch = settings.micro_batch * settings.length;
  const auto kept = static_cast<int64_t>(done_set.size()) * tokens_a_batch;
  session.progress.start("sample", micro_batches(settings) * tokens_a_batch, "tokens");
  session.progress.update(kept);
  const auto start = std::chrono::steady_clock::now();
  SamplingHooks hooks;
  hooks.on_sampled = on_sampled;
  hooks.on_arrived = [&](const MicroBatch& batch) { arrived->add(batch); };
  hooks.on_progress = [&](int64_t tokens) { session.progress.update(kept + tokens); };
  sample_together(session, done_set, hooks);
  session.progress.finish();
  calibration.tokens_sampled = micro_batches(settings) * tokens_a_batch - kept;
  calibration.sampling_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (session.world.rank() != 0) return {};
  CalibrationSet set = arrived->whole();
  if (set.tokens.size(0) != settings.sequences)
    fail(ExitCode::internal, "calibration: {} of {} sequences have arrived", set.tokens.size(0),
         settings.sequences);
  return set;
}

}  // namespace

bool is_sampled(const Session& session) {
  return fs::exists(session.directory.calibration(calibration_id(session)));
}

Calibration prepare_calibration(
    const Session& session,
    const std::function<void(const MicroBatch&, const Generator&)>& on_sampled) {
  const auto& settings = session.config.calibration;
  const auto& world = session.world;
  Calibration calibration;
  CalibrationSet set;
  fs::path file, parts;
  int32_t found = 0;
  agree(world, [&] {
    if (world.rank() != 0) return;
    const std::string id = calibration_id(session);
    file = session.directory.calibration(id);
    parts = file.parent_path() / (id + ".parts");
    if (fs::exists(file)) {
      set = read_calibration(file);
      found = 1;
    } else if (settings.source != CalibrationSource::self) {
      set = settings.source == CalibrationSource::tokens
                ? read_token_source(settings, session.model.shape())
                : draw_vocabulary(settings, session.model.shape());
    }
  });
  world.broadcast(std::as_writable_bytes(std::span(&found, 1)), 0);
  if (!found) {
    if (settings.source == CalibrationSource::self)
      set = sample_set(session, parts, calibration, on_sampled);
    agree(world, [&] {
      if (world.rank() != 0) return;
      make_folder(file.parent_path());
      write_calibration(file, set);
      fs::remove_all(parts);
    });
  }

  calibration.content_hash.resize(32);
  calibration.tokens = at::empty({settings.sequences, settings.length}, at::kInt);
  if (world.rank() == 0) {
    calibration.content_hash = set.content_hash();
    calibration.tokens.copy_(set.tokens);
  }
  world.broadcast(std::as_writable_bytes(std::span(calibration.content_hash)), 0);
  world.broadcast(bytes_of(calibration.tokens), 0);
  return calibration;
}

}  // namespace selfcal
