#include "pipeline/finish.hpp"

#include <fmt/chrono.h>

#include <algorithm>
#include <ctime>
#include <numeric>

#include "base/log.hpp"
#include "comm/agreement.hpp"
#include "stages/export/export.hpp"
#include "storage/gathered_checkpoint.hpp"

namespace selfcal {
namespace {

void gather(const Job& job, bool changed) {
  const Session& session = job.session;
  const JobDirectory folder = session.directory.job(session.config.name);
  if (!any(session.world, changed || !fs::exists(folder.gathered()))) return;
  const auto scope = session.timer.measure(Phase::write);
  GatherSettings settings;
  settings.layers = session.model.shape().layers;
  settings.job_id = job.id;
  settings.provenance = {{"tool", "selfcal"},
                         {"config", to_yaml(session.config)},
                         {"numeric_kind", session.numeric_kind},
                         {"model", session.config.model.string()}};
  gather_checkpoint(session.world, session.model.checkpoint(), folder, settings);
}

/// A directory of an earlier, unchanged run stays.
void write_exports(const Job& job, bool changed) {
  const Session& session = job.session;
  const JobDirectory folder = session.directory.job(session.config.name);
  const bool anew = any(session.world, changed);
  const auto scope = session.timer.measure(Phase::write);
  for (const auto& format : session.config.exports) {
    const fs::path directory = folder.exported(format);
    bool missing = false;
    agree(session.world, [&] {
      if (session.world.rank() != 0) return;
      missing = anew || !fs::exists(directory);
      if (!missing) return;
      fs::remove_all(directory);  // ours: it lies in the run directory
      make_folder(directory.parent_path());
    });
    if (!any(session.world, missing)) continue;
    export_model(session.world,
                 {session.model.checkpoint(), folder, session.model.shape().layers, job.id},
                 export_format_of(format), directory);
    log::info("export: {}", directory.string());
  }
}

RunReport describe(const Job& job) {
  const Session& session = job.session;
  RunReport report;
  report.tool = "selfcal";
  report.numeric_kind = session.numeric_kind;
  report.job = job.name();
  report.shared = job.shared;
  report.job_id = job.id;
  report.model = session.config.model.string();
  report.architecture = session.model.shape().architecture;
  report.method = to_text(session.config.method.name);
  report.propagation = to_text(session.config.propagation);
  report.layout = session.layout.describe();
  report.config = to_yaml(session.config);
  report.finished = fmt::format("{:%Y-%m-%d %H:%M:%S}", fmt::gmtime(std::time(nullptr)));
  report.damping = session.config.method.damping;
  report.tokens = job.calibration.tokens.numel();
  report.tokens_sampled = job.calibration.tokens_sampled;
  report.sampling_seconds = job.calibration.sampling_seconds;
  return report;
}

std::string role_of(const Session& session) {
  const bool samples = session.layout.samples(session.world.rank());
  const auto shard = fmt::format("shard {}", session.layout.shard_of(session.world.rank()));
  return samples ? "samples, then " + shard : shard;
}

void tell(const Session& session, const RunReport& report) {
  const MeanErrors errors = mean_errors(report);
  log::info("relative error {:.5f} ({} {:.5f}){}", errors.compressed, control_of(report),
            errors.nearest,
            errors.bits > 0 ? fmt::format(", {:.2f} bits a weight", errors.bits) : "");
  if (report.perplexity)
    log::info("perplexity {:.3f} (dense {:.3f}) on {}", report.perplexity->compressed,
              report.perplexity->dense, report.perplexity->tokens);
  if (const auto& loss = report.calibration_loss)
    log::info("loss {:.4f} nats a token of the calibration text (dense {:.4f})", loss->compressed,
              loss->dense);
  for (const auto& sentence : needs_a_look(report)) log::warn("{}", sentence);
  const fs::path page =
      session.directory.job(session.config.name).report().replace_extension(".html");
  log::info("done in {:.1f} s; report: {}", report.seconds, page.string());
}

}  // namespace

void finish_job(Job& job, TimeAccount& time, TextLosses& losses) {
  const Session& session = job.session;
  const bool changed =
      std::ranges::any_of(job.layers, [](const LayerReport& layer) { return !layer.replayed; });
  gather(job, changed);
  write_exports(job, changed);
  RunReport report = describe(job);
  report.perplexity = losses.perplexity(job);
  if (job.measures_loss()) report.calibration_loss = losses.of_calibration(job);
  report.layers = std::move(job.layers);
  time.charge(job);
  RankReport mine = report_of_this_rank(session.world.rank(), job.seconds);
  mine.planned_memory = static_cast<int64_t>(session.planned_memory);
  mine.bytes_sent = session.world.activity().bytes_sent();
  mine.timeline = session.timer.timeline();
  mine.device = session.context.device.memory.str();
  mine.role = role_of(session);
  mine.threads = session.context.threads->size();
  report.ranks = {mine};
  report.seconds = std::accumulate(job.seconds.begin(), job.seconds.end(), 0.0);
  report = gather_report(session.world, std::move(report));
  agree(session.world, [&] {
    if (session.world.rank() != 0) return;
    write_report(report, session.directory.job(job.name()).report());
    tell(session, report);
  });
}

bool is_finished(const Job& job) {
  const JobDirectory folder = job.session.directory.job(job.name());
  const auto has_export = [&](const std::string& format) {
    return fs::exists(folder.exported(format));
  };
  if (!job.complete() || !fs::exists(folder.gathered()) || !fs::exists(folder.report()) ||
      !std::ranges::all_of(job.session.config.exports, has_export))
    return false;
  try {
    const RunReport report = report_from_json(read_text(folder.report()));
    RunConfig then = parse_config(report.config, folder.report().string());
    then.layout = job.session.config.layout;  // who computed it does not matter
    then.threads = job.session.config.threads;
    if (job.measures_loss() && !report.calibration_loss) return false;
    return report.job_id == job.id && to_yaml(then) == to_yaml(job.session.config);
  } catch (const Error&) {
    return false;  // it will be written anew
  }
}

}  // namespace selfcal
