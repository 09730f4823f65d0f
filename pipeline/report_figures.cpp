// Figures of a report that follow from its layers and ranks.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pipeline/report.hpp"
#include "stages/solve/method_settings.hpp"

namespace selfcal {

double idle_share(const RunReport& report) {
  double idle = 0, all = 0;
  for (const auto& rank : report.ranks) {
    idle += rank.seconds[static_cast<size_t>(Phase::idle)];
    all += std::accumulate(rank.seconds.begin(), rank.seconds.end(), 0.0);
  }
  return all > 0 ? idle / all : 0;
}

std::string control_of(const RunReport& report) {
  const bool pruned = std::ranges::any_of(method_names, [&](const auto& known) {
    return known.first == report.method && prunes(known.second);
  });
  return pruned ? "magnitude pruning" : "round-to-nearest";
}

MeanErrors mean_errors(const RunReport& report) {
  MeanErrors sums;
  double weights = 0;
  for (const auto& layer : report.layers)
    for (const auto& linear : layer.linears) {
      const auto size = static_cast<double>(linear.rows * linear.columns);
      constexpr double scale_bits = 16;
      weights += size;
      sums.compressed += size * linear.relative_error;
      sums.nearest += size * linear.nearest_error;
      if (linear.bits > 0 && linear.group_size > 0)
        sums.bits += size * (linear.bits + scale_bits / static_cast<double>(linear.group_size));
    }
  if (weights == 0) return {};
  return {sums.compressed / weights, sums.nearest / weights, sums.bits / weights};
}

std::vector<double> mean_errors_of_layers(const RunReport& report) {
  std::vector<double> means;
  for (const auto& layer : report.layers) {
    RunReport alone;
    alone.layers = {layer};
    means.push_back(mean_errors(alone).compressed);
  }
  return means;
}

std::vector<std::string> needs_a_look(const RunReport& report) {
  struct Finding {
    int64_t count = 0;
    double worst = -1;
    std::string text;  // of the worst
  };
  Finding unfinished, damped, dead, worse;
  const auto note = [](Finding& finding, double badness, const std::string& text) {
    ++finding.count;
    if (badness > finding.worst) {
      finding.worst = badness;
      finding.text = text;
    }
  };
  for (const auto& layer : report.layers)
    for (const auto& linear : layer.linears) {
      if (!std::isfinite(linear.relative_error) || !std::isfinite(linear.loss))
        note(unfinished, 1, linear.name);
      if (linear.damping_retries > 0)
        note(damped, linear.damping,
             fmt::format("{}: {:.3g} instead of {:.3g}", linear.name, linear.damping,
                         report.damping));
      if (linear.dead_columns > 0)
        note(dead, static_cast<double>(linear.dead_columns),
             fmt::format("{}: {} of {}", linear.name, linear.dead_columns, linear.columns));
      if (linear.relative_error > linear.nearest_error * (1 + 1e-6))
        note(worse, linear.relative_error / std::max(linear.nearest_error, 1e-30),
             fmt::format("{}: relative error {:.3g} against {:.3g}", linear.name,
                         linear.relative_error, linear.nearest_error));
    }
  std::vector<std::string> lines;
  const auto tell = [&](const Finding& finding, const std::string& one, const std::string& many,
                        const char* worst) {
    if (finding.count == 1) lines.push_back(fmt::format("{} ({})", one, finding.text));
    if (finding.count > 1)
      lines.push_back(fmt::format("{} {} ({} {})", finding.count, many, worst, finding.text));
  };
  tell(unfinished, "1 layer has errors that are not finite",
       "layers have errors that are not finite", "first");
  tell(damped, "1 layer needed more damping", "layers needed more damping", "most");
  tell(dead, "1 layer has inputs that are always zero", "layers have inputs that are always zero",
       "most");
  const std::string than = "worse than " + control_of(report);
  tell(worse, "1 layer is " + than, "layers are " + than, "worst");
  if (const auto& perplexity = report.perplexity)
    if (!(perplexity->compressed < 2 * perplexity->dense))
      lines.push_back(fmt::format("perplexity rose from {:.2f} to {:.2f}", perplexity->dense,
                                  perplexity->compressed));
  return lines;
}

}  // namespace selfcal
