// report.html: the figures that matter first, then what needs a look, plots, and every number in
// tables.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

#include "pipeline/progress.hpp"
#include "pipeline/report.hpp"
#include "pipeline/report_plots.hpp"

namespace selfcal {
namespace {

using plots::escaped;

constexpr const char* our_colour = "#2f6db3";
constexpr const char* control_colour = "#b0b0b0";

constexpr const char* style = R"(
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #222; background: #fff;
       max-width: 1100px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 0.6rem; border-bottom: 1px solid #ddd; padding-bottom: 0.2rem; }
p { margin: 0.3rem 0 0.8rem; }
.quiet { color: #666; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0.8rem; margin: 1.4rem 0; }
.figure { border: 1px solid #ddd; border-radius: 6px; padding: 0.7rem 0.9rem; }
.figure b { display: block; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.figure span { color: #666; font-size: 0.85rem; }
.look { border-left: 4px solid #d08700; background: #fff8ea; padding: 0.6rem 1rem; }
.well { border-left: 4px solid #4a9a5a; background: #f1f8f2; padding: 0.6rem 1rem; }
.look ul { margin: 0.2rem 0; padding-left: 1.2rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 0.6rem; }
svg { width: 100%; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; font-size: 0.85rem; margin: 0.4rem 0; }
.legend i { display: inline-block; width: 0.8rem; height: 0.8rem; border-radius: 2px; margin-right: 0.35rem; vertical-align: -1px; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: 0.2rem 0.55rem; border-bottom: 1px solid #eee; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: #555; font-weight: 600; }
td.worse { color: #b03a00; font-weight: 600; }
.wide { overflow-x: auto; }
details { margin: 0.8rem 0; }
summary { cursor: pointer; color: #2f6db3; }
pre { background: #f7f7f7; border: 1px solid #e4e4e4; border-radius: 6px; padding: 0.8rem; font-size: 0.8rem; overflow-x: auto; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } details { display: none; } h2 { break-after: avoid; }
               .figure, svg, tr { break-inside: avoid; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
)";

const std::array<const char*, phase_names.size()> phase_colours = {
    "#9c755f", "#4e79a7", "#76b7b2", "#59a14f", "#a9d18e", "#edc948",
    "#e15759", "#f4b6a6", "#d37295", "#b07aa1", "#f28e2b", "#e2e2e2"};

/// "mlp.up_proj" of "model.layers.7.mlp.up_proj": what follows the layer's number.
std::string place_in_block(const std::string& name, int64_t layer) {
  const std::string number = fmt::format(".{}.", layer);
  const size_t at = name.find(number);
  return at == std::string::npos ? name : name.substr(at + number.size());
}

std::string small(double value) {
  return std::isfinite(value) ? fmt::format("{:.3g}", value) : "not finite";
}

std::string bytes_text(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value >= 1e9) return fmt::format("{:.2f} GB", value / 1e9);
  return value >= 1e6 ? fmt::format("{:.0f} MB", value / 1e6)
                      : fmt::format("{:.0f} KB", value / 1e3);
}

std::string figure(const std::string& value, const std::string& what) {
  return fmt::format("<div class=\"figure\"><b>{}</b><span>{}</span></div>\n", escaped(value),
                     escaped(what));
}

std::string figures(const RunReport& report) {
  const MeanErrors means = mean_errors(report);
  std::string html = "<div class=\"figures\">\n";
  if (const auto& p = report.perplexity)
    html += figure(fmt::format("{:.2f}", p->compressed),
                   fmt::format("perplexity (dense {:.2f})", p->dense));
  if (const auto& loss = report.calibration_loss)
    html += figure(fmt::format("{:+.4f}", loss->lost()),
                   fmt::format("nats a token of the calibration text (dense {:.4f})", loss->dense));
  html += figure(small(means.compressed), fmt::format("mean relative error ({} {})",
                                                      control_of(report), small(means.nearest)));
  if (means.bits > 0)
    html += figure(fmt::format("{:.2f}", means.bits), "bits a weight, scales included");
  html += figure(duration_text(report.seconds), fmt::format("on {} rank{}", report.ranks.size(),
                                                            report.ranks.size() == 1 ? "" : "s"));
  if (report.tokens_sampled > 0 && report.sampling_seconds > 0)
    html += figure(
        fmt::format("{:.0f}", static_cast<double>(report.tokens_sampled) / report.sampling_seconds),
        fmt::format("tokens sampled a second ({} in all)", count_text(report.tokens_sampled)));
  int64_t peak = 0;
  for (const auto& rank : report.ranks) peak = std::max(peak, rank.peak_memory);
  if (peak > 0) html += figure(bytes_text(peak), "peak memory of a rank");
  return html + "</div>\n";
}

std::string look(const RunReport& report) {
  const auto lines = needs_a_look(report);
  if (lines.empty())
    return fmt::format(
        "<p class=\"well\">No damping was raised, no input is always zero, and every layer is "
        "better "
        "than {} or equal to it.</p>\n",
        control_of(report));
  std::string html = "<div class=\"look\"><b>Needs a look</b><ul>\n";
  for (const auto& line : lines) html += fmt::format("<li>{}</li>\n", escaped(line));
  return html + "</ul></div>\n";
}

std::string legend(const std::vector<plots::Segment>& entries) {
  std::string html = "<div class=\"legend\">";
  for (const auto& entry : entries)
    html += fmt::format("<span><i style=\"background:{}\"></i>{}</span>", entry.colour,
                        escaped(entry.name));
  return html + "</div>\n";
}

/// One small chart for each kind of linear layer, all with the same axis.
std::string error_plots(const RunReport& report) {
  std::vector<std::string> order;
  std::map<std::string, std::vector<plots::Series>> by_place;
  std::vector<plots::Series> all;
  for (const auto& layer : report.layers)
    for (const auto& linear : layer.linears) {
      const std::string place = place_in_block(linear.name, layer.layer);
      auto& series = by_place[place];
      if (series.empty()) {
        order.push_back(place);
        series = {{control_of(report), control_colour, true, {}},
                  {report.method, our_colour, false, {}}};
      }
      series[0].points.emplace_back(layer.layer, linear.nearest_error);
      series[1].points.emplace_back(layer.layer, linear.relative_error);
    }
  for (const auto& [place, series] : by_place) all.insert(all.end(), series.begin(), series.end());
  const plots::Range range = plots::range_of(all, true);
  std::string html =
      legend({{report.method, our_colour}, {control_of(report) + ", the control", control_colour}});
  html += "<div class=\"plots\">\n";
  for (const auto& place : order)
    html += plots::line_chart({place, "layer", by_place[place], range, true}) + "\n";
  return html + "</div>\n";
}

/// Losses of the dense model and of both jobs; the layers' errors side by side.
std::string beside(const RunReport& report) {
  const BesideReport& other = *report.beside;
  const BesideReport mine = as_beside(report);
  std::string html = fmt::format("<h2>Beside {} ({} propagation)</h2>\n", escaped(other.job),
                                 escaped(other.propagation));
  if (mine.calibration_loss && other.calibration_loss) {
    html += fmt::format(
        "<p class=\"quiet\">Cross-entropy of a token, in nats, over the first {} tokens that both "
        "were calibrated with.</p>\n<table><tr><th></th><th>loss</th><th>beside "
        "dense</th><th>perplexity</th></tr>\n",
        count_text(mine.calibration_loss->tokens));
    const auto row = [&](const std::string& name, double loss, const std::string& lost) {
      html += fmt::format("<tr><td>{}</td><td>{:.4f}</td><td>{}</td><td>{:.3f}</td></tr>\n",
                          escaped(name), loss, lost, std::exp(loss));
    };
    row("the dense model", mine.calibration_loss->dense, "");
    for (const BesideReport* job : {&mine, &other})
      row(fmt::format("{} ({} propagation)", job->job, job->propagation),
          job->calibration_loss->compressed, fmt::format("{:+.4f}", job->calibration_loss->lost()));
    html += "</table>\n";
  }
  html +=
      "<p class=\"quiet\">Mean relative errors of the layers. Each job's are of its own inputs: "
      "where the layers before are compressed, or where they are dense. They show where the jobs "
      "part; which of them is better the losses tell.</p>\n";
  std::vector<plots::Series> both{
      {fmt::format("{} ({})", other.job, other.propagation), control_colour, true, {}},
      {fmt::format("{} ({})", mine.job, mine.propagation), our_colour, false, {}}};
  std::string table = fmt::format("<table><tr><th>layer</th><th>{}</th><th>{}</th></tr>\n",
                                  escaped(both[1].name), escaped(both[0].name));
  const auto row = [&](const std::string& layer, double my_error, double their_error) {
    table += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n", layer, small(my_error),
                         small(their_error));
  };
  for (size_t i = 0; i < std::min(mine.relative_errors.size(), other.relative_errors.size()); ++i) {
    const auto layer = static_cast<double>(report.layers[i].layer);
    both[0].points.emplace_back(layer, other.relative_errors[i]);
    both[1].points.emplace_back(layer, mine.relative_errors[i]);
    row(std::to_string(report.layers[i].layer), mine.relative_errors[i], other.relative_errors[i]);
  }
  row("mean", mine.relative_error, other.relative_error);
  html += legend({{both[1].name, our_colour}, {both[0].name, control_colour}});
  html +=
      "<div class=\"plots\">\n" +
      plots::line_chart({"mean relative error", "layer", both, plots::range_of(both, true), true}) +
      "\n</div>\n";
  return html + "<details><summary>Every layer</summary><div class=\"wide\">\n" + table +
         "</table></div></details>\n";
}

std::string damping_plot(const RunReport& report) {
  plots::Series most{"damping", our_colour, false, {}}, dead{"inputs", "#d08700", false, {}};
  bool any_dead = false;
  for (const auto& layer : report.layers) {
    double damping = 0, dead_inputs = 0;
    for (const auto& linear : layer.linears) {
      damping = std::max(damping, linear.damping);
      dead_inputs += static_cast<double>(linear.dead_columns);
    }
    any_dead |= dead_inputs > 0;
    most.points.emplace_back(layer.layer, damping);
    dead.points.emplace_back(layer.layer, dead_inputs);
  }
  std::string html = "<div class=\"plots\">\n";
  html +=
      plots::line_chart({"largest damping used", "layer", {most}, plots::range_of({most}, false)});
  if (any_dead)
    html += plots::line_chart(
        {"inputs that are always zero", "layer", {dead}, plots::range_of({dead}, false)});
  return html + "</div>\n";
}

/// All phases, and of them those that took any time.
std::pair<std::vector<plots::Segment>, std::vector<plots::Segment>> phase_segments(
    const RunReport& report) {
  std::vector<plots::Segment> all, used;
  for (size_t phase = 0; phase < phase_names.size(); ++phase) {
    all.push_back({std::string(phase_names[phase]), phase_colours[phase]});
    double sum = 0;
    for (const auto& rank : report.ranks) sum += rank.seconds[phase];
    if (sum > 0) used.push_back(all.back());
  }
  return {all, used};
}

std::string phase_plot(const RunReport& report) {
  const auto [all, used] = phase_segments(report);
  std::vector<plots::Bar> bars;
  for (const auto& rank : report.ranks)
    bars.push_back({fmt::format("rank {}", rank.rank),
                    std::vector<double>(rank.seconds.begin(), rank.seconds.end())});
  return legend(used) + plots::stacked_bars(all, bars);
}

/// Of the first ranks: the others' are in report.json.
std::string timeline_plot(const RunReport& report) {
  constexpr size_t most_rows = 16;
  std::vector<plots::TimelineRow> rows;
  for (const auto& rank : report.ranks) {
    if (rows.size() == most_rows) break;
    plots::TimelineRow row{fmt::format("rank {}", rank.rank), rank.timeline.span, {}};
    for (const auto& span : rank.timeline.spans) row.spans.emplace_back(span.begin(), span.end());
    rows.push_back(std::move(row));
  }
  return plots::timelines(phase_segments(report).first, rows);
}

std::string rank_table(const RunReport& report) {
  std::string html =
      "<div "
      "class=\"wide\"><table><tr><th>rank</th><th>host</th><th>device</th><th>threads</th><th>peak "
      "memory</th><th>planned</th>"
      "<th>read</th><th>written</th><th>sent</th>";
  for (const auto& name : phase_names) html += fmt::format("<th>{}</th>", name);
  html += "</tr>\n";
  for (const auto& rank : report.ranks) {
    html += fmt::format(
        "<tr><td>{} {}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>"
        "<td>{}</td><td>{}</td>",
        rank.rank, escaped(rank.role), escaped(rank.host), escaped(rank.device), rank.threads,
        bytes_text(rank.peak_memory), bytes_text(rank.planned_memory), bytes_text(rank.bytes_read),
        bytes_text(rank.bytes_written), bytes_text(rank.bytes_sent));
    for (const double seconds : rank.seconds) html += fmt::format("<td>{:.2f}</td>", seconds);
    html += "</tr>\n";
  }
  return html + "</table></div>\n";
}

std::string layer_table(const RunReport& report) {
  std::string html = fmt::format(
      "<table><tr><th>layer</th><th>weight</th><th>bits</th><th>group</th><th>zeros</"
      "th><th>relative "
      "error</th>"
      "<th>{}</th><th>loss</th><th>damping</th><th>dead inputs</th></tr>\n",
      control_of(report));
  for (const auto& layer : report.layers)
    for (const auto& linear : layer.linears)
      html += fmt::format(
          "<tr><td>{}</td><td>{} x "
          "{}</td><td>{}</td><td>{}</td><td>{:.3g}</td><td{}>{}</td><td>{}</td><td>{}</"
          "td><td{}>{:g}</"
          "td>"
          "<td{}>{}</td></tr>\n",
          escaped(linear.name), linear.rows, linear.columns, linear.bits, linear.group_size,
          linear.sparsity,
          linear.relative_error > linear.nearest_error * (1 + 1e-6) ? " class=\"worse\"" : "",
          small(linear.relative_error), small(linear.nearest_error), small(linear.loss),
          linear.damping_retries > 0 ? " class=\"worse\"" : "", linear.damping,
          linear.dead_columns > 0 ? " class=\"worse\"" : "", linear.dead_columns);
  return html + "</table>\n";
}

int64_t replayed_layers(const RunReport& report) {
  return std::ranges::count_if(report.layers, &LayerReport::replayed);
}

}  // namespace

std::string report_page(const RunReport& report) {
  const fs::path model(report.model);
  const fs::path name = model.has_filename() ? model.filename() : model.parent_path().filename();
  const std::string title = name.string() + ", " + report.method;
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, "
      "initial-scale=1\">\n<title>{}</title>\n<style>{}</style></head>\n"
      "<body>\n<h1>{}</h1>\n",
      escaped(title), style, escaped(title));
  html += fmt::format(
      "<p class=\"quiet\">{}, {} layers, {} calibration tokens, {} propagation. {}. {}{}</p>\n",
      escaped(report.architecture), report.layers.size(), count_text(report.tokens),
      escaped(report.propagation),
      escaped(report.shared.empty() ? report.layout : report.layout + "; " + report.shared),
      report.finished.empty() ? "" : "Finished " + escaped(report.finished) + " UTC.",
      replayed_layers(report) > 0
          ? fmt::format(" {} layers were committed by an earlier run.", replayed_layers(report))
          : "");
  html += figures(report) + look(report);
  html +=
      "<h2>Error of each layer</h2>\n<p class=\"quiet\">tr(E H E<sup>T</sup>) / tr(W H "
      "W<sup>T</sup>): the part of a "
      "layer's output that is lost on the calibration data.</p>\n" +
      error_plots(report);
  if (report.beside) html += beside(report);
  html += "<h2>Where the time went</h2>\n" + phase_plot(report);
  html += fmt::format(
      "<p class=\"quiet\">When it did: ranks waited for each other {:.1f} % of their time.</p>\n",
      100 * idle_share(report));
  html += timeline_plot(report);
  html += "<details><summary>Seconds, memory and bytes of each rank</summary>\n" +
          rank_table(report) + "</details>\n";
  html += "<h2>Damping and dead inputs</h2>\n" + damping_plot(report);
  html +=
      "<h2>Every number</h2>\n<details><summary>All linear layers</summary><div class=\"wide\">\n" +
      layer_table(report) + "</div></details>\n";
  html +=
      fmt::format("<details><summary>Configuration as resolved</summary><pre>{}</pre></details>\n",
                  escaped(report.config));
  html += fmt::format("<p class=\"quiet\">{}. {}. Job {} ({}).</p>\n</body></html>\n",
                      escaped(report.tool), escaped(report.numeric_kind), escaped(report.job),
                      escaped(report.job_id));
  return html;
}

}  // namespace selfcal
