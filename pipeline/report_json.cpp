// The report as JSON, in both directions, and on its way between ranks.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "pipeline/report.hpp"

namespace selfcal {
namespace {

using Json = nlohmann::ordered_json;

Json seconds_json(const PhaseSeconds& seconds) {
  Json object = Json::object();
  for (size_t phase = 0; phase < seconds.size(); ++phase)
    if (seconds[phase] > 0) object[std::string(phase_names[phase])] = seconds[phase];
  return object;
}

PhaseSeconds seconds_from(const Json& object) {
  PhaseSeconds seconds{};
  for (size_t phase = 0; phase < seconds.size(); ++phase)
    seconds[phase] = object.value(std::string(phase_names[phase]), 0.0);
  return seconds;
}

/// Phase by phase, since most spans have few of them.
Json timeline_json(const Timeline& timeline) {
  Json phases = Json::object();
  for (size_t phase = 0; phase < phase_names.size(); ++phase) {
    Json spans = Json::array();
    double sum = 0;
    for (const auto& span : timeline.spans) {
      spans.push_back(std::round(span[phase] * 1e4) / 1e4);
      sum += span[phase];
    }
    if (sum > 0) phases[std::string(phase_names[phase])] = std::move(spans);
  }
  return {{"span", timeline.span}, {"phases", std::move(phases)}};
}

Timeline timeline_from(const Json& object) {
  Timeline timeline;
  object.at("span").get_to(timeline.span);
  for (size_t phase = 0; phase < phase_names.size(); ++phase) {
    const auto spans =
        object.at("phases").value(std::string(phase_names[phase]), std::vector<double>());
    timeline.spans.resize(std::max(timeline.spans.size(), spans.size()));
    for (size_t i = 0; i < spans.size(); ++i) timeline.spans[i][phase] = spans[i];
  }
  return timeline;
}

/// Numbers that are not finite are null in JSON.
double number_from(const Json& object, const char* key) {
  const auto& value = object.at(key);
  return value.is_null() ? std::nan("") : value.get<double>();
}

Json linear_json(const LinearReport& linear) {
  return {{"name", linear.name},
          {"rows", linear.rows},
          {"columns", linear.columns},
          {"bits", linear.bits},
          {"group_size", linear.group_size},
          {"relative_error", linear.relative_error},
          {"nearest_error", linear.nearest_error},
          {"loss", linear.loss},
          {"damping", linear.damping},
          {"damping_retries", linear.damping_retries},
          {"dead_columns", linear.dead_columns},
          {"sparsity", linear.sparsity}};
}

LinearReport linear_from(const Json& object) {
  LinearReport linear;
  object.at("name").get_to(linear.name);
  object.at("rows").get_to(linear.rows);
  object.at("columns").get_to(linear.columns);
  object.at("bits").get_to(linear.bits);
  object.at("group_size").get_to(linear.group_size);
  linear.relative_error = number_from(object, "relative_error");
  linear.nearest_error = number_from(object, "nearest_error");
  linear.loss = number_from(object, "loss");
  linear.damping = number_from(object, "damping");
  object.at("damping_retries").get_to(linear.damping_retries);
  object.at("dead_columns").get_to(linear.dead_columns);
  linear.sparsity = object.value("sparsity", 0.0);
  return linear;
}

Json layers_json(const std::vector<LayerReport>& layers) {
  Json list = Json::array();
  for (const auto& layer : layers) {
    Json linears = Json::array();
    for (const auto& linear : layer.linears) linears.push_back(linear_json(linear));
    list.push_back({{"layer", layer.layer},
                    {"replayed", layer.replayed},
                    {"seconds", seconds_json(layer.seconds)},
                    {"linears", std::move(linears)}});
  }
  return list;
}

std::vector<LayerReport> layers_from(const Json& list) {
  std::vector<LayerReport> layers;
  for (const auto& object : list) {
    LayerReport layer{object.at("layer").get<int64_t>(),
                      object.at("replayed").get<bool>(),
                      seconds_from(object.at("seconds")),
                      {}};
    for (const auto& linear : object.at("linears")) layer.linears.push_back(linear_from(linear));
    layers.push_back(std::move(layer));
  }
  return layers;
}

Json ranks_json(const std::vector<RankReport>& ranks) {
  Json list = Json::array();
  for (const auto& rank : ranks)
    list.push_back({{"rank", rank.rank},
                    {"host", rank.host},
                    {"device", rank.device},
                    {"role", rank.role},
                    {"threads", rank.threads},
                    {"seconds", seconds_json(rank.seconds)},
                    {"peak_memory", rank.peak_memory},
                    {"planned_memory", rank.planned_memory},
                    {"bytes_read", rank.bytes_read},
                    {"bytes_written", rank.bytes_written},
                    {"bytes_sent", rank.bytes_sent},
                    {"timeline", timeline_json(rank.timeline)}});
  return list;
}

std::vector<RankReport> ranks_from(const Json& list) {
  std::vector<RankReport> ranks;
  for (const auto& object : list) {
    RankReport rank;
    object.at("rank").get_to(rank.rank);
    object.at("host").get_to(rank.host);
    rank.device = object.value("device", "");
    object.at("role").get_to(rank.role);
    object.at("threads").get_to(rank.threads);
    rank.seconds = seconds_from(object.at("seconds"));
    object.at("peak_memory").get_to(rank.peak_memory);
    object.at("planned_memory").get_to(rank.planned_memory);
    object.at("bytes_read").get_to(rank.bytes_read);
    object.at("bytes_written").get_to(rank.bytes_written);
    object.at("bytes_sent").get_to(rank.bytes_sent);
    rank.timeline = timeline_from(object.at("timeline"));
    ranks.push_back(std::move(rank));
  }
  return ranks;
}

Json loss_json(const CalibrationLossReport& loss) {
  return {{"dense", loss.dense}, {"compressed", loss.compressed}, {"tokens", loss.tokens}};
}

/// The member `calibration_loss` where it is there.
std::optional<CalibrationLossReport> loss_from(const Json& object) {
  if (!object.contains("calibration_loss")) return std::nullopt;
  const Json& loss = object.at("calibration_loss");
  return CalibrationLossReport{number_from(loss, "dense"), number_from(loss, "compressed"),
                               loss.at("tokens").get<int64_t>()};
}

Json beside_json(const BesideReport& beside) {
  Json object{{"job", beside.job},
              {"propagation", beside.propagation},
              {"relative_error", beside.relative_error}};
  if (beside.calibration_loss) object["calibration_loss"] = loss_json(*beside.calibration_loss);
  object["layers"] = beside.relative_errors;
  return object;
}

BesideReport beside_from(const Json& object) {
  BesideReport beside{object.at("job").get<std::string>(),
                      object.at("propagation").get<std::string>(),
                      number_from(object, "relative_error"),
                      {},
                      loss_from(object)};
  for (const auto& error : object.at("layers"))
    beside.relative_errors.push_back(error.is_null() ? std::nan("") : error.get<double>());
  return beside;
}

/// The fields of text and number, by their JSON keys: one list for both directions.
template <class Report>
auto text_fields(Report& report) {
  return std::array{std::pair{"tool", &report.tool},
                    std::pair{"numeric_kind", &report.numeric_kind},
                    std::pair{"finished", &report.finished},
                    std::pair{"job", &report.job},
                    std::pair{"job_id", &report.job_id},
                    std::pair{"model", &report.model},
                    std::pair{"architecture", &report.architecture},
                    std::pair{"method", &report.method},
                    std::pair{"propagation", &report.propagation},
                    std::pair{"layout", &report.layout},
                    std::pair{"config", &report.config},
                    std::pair{"shared", &report.shared}};
}

std::string dumped(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

RunReport gather_report(const Communicator& world, RunReport mine) {
  const std::string text =
      dumped({{"layers", layers_json(mine.layers)}, {"ranks", ranks_json(mine.ranks)}}, -1);
  mine.layers.clear();
  mine.ranks.clear();
  for (const auto& message : world.all_gather(std::as_bytes(std::span(text)))) {
    const auto* first = reinterpret_cast<const char*>(message.data());
    const Json part = Json::parse(first, first + message.size());
    for (auto& layer : layers_from(part.at("layers"))) mine.layers.push_back(std::move(layer));
    for (auto& rank : ranks_from(part.at("ranks"))) mine.ranks.push_back(std::move(rank));
  }
  std::ranges::sort(mine.layers, {}, &LayerReport::layer);
  std::ranges::sort(mine.ranks, {}, &RankReport::rank);
  return mine;
}

std::string to_json(const RunReport& report) {
  Json json{{"schema", 1}};
  for (const auto& [key, text] : text_fields(report)) json[key] = *text;
  json["damping"] = report.damping;
  json["seconds"] = report.seconds;
  json["tokens"] = report.tokens;
  json["tokens_sampled"] = report.tokens_sampled;
  json["sampling_seconds"] = report.sampling_seconds;
  if (const auto& perplexity = report.perplexity)
    json["perplexity"] = {{"dense", perplexity->dense},
                          {"compressed", perplexity->compressed},
                          {"tokens", perplexity->tokens},
                          {"windows", perplexity->windows},
                          {"window", perplexity->window}};
  if (report.calibration_loss) json["calibration_loss"] = loss_json(*report.calibration_loss);
  if (report.beside) json["beside"] = beside_json(*report.beside);
  json["idle_share"] = idle_share(report);
  const MeanErrors means = mean_errors(report);
  json["mean"] = {
      {"relative_error", means.compressed}, {"nearest_error", means.nearest}, {"bits", means.bits}};
  json["needs_a_look"] = needs_a_look(report);
  json["ranks"] = ranks_json(report.ranks);
  json["layers"] = layers_json(report.layers);
  return dumped(json, 1) + "\n";
}

RunReport report_from_json(const std::string& text) try {
  const Json json = Json::parse(text);
  if (json.at("schema") != 1)
    fail(ExitCode::data, "report: found schema {}, expected 1", json.at("schema").dump());
  RunReport report;
  for (const auto& [key, field] : text_fields(report)) json.at(key).get_to(*field);
  report.damping = number_from(json, "damping");
  report.seconds = number_from(json, "seconds");
  json.at("tokens").get_to(report.tokens);
  json.at("tokens_sampled").get_to(report.tokens_sampled);
  report.sampling_seconds = number_from(json, "sampling_seconds");
  if (json.contains("perplexity")) {
    const auto& object = json["perplexity"];
    report.perplexity = {number_from(object, "dense"), number_from(object, "compressed"),
                         object.at("tokens").get<std::string>(),
                         object.at("windows").get<int64_t>(), object.at("window").get<int64_t>()};
  }
  report.calibration_loss = loss_from(json);
  if (json.contains("beside")) report.beside = beside_from(json["beside"]);
  report.ranks = ranks_from(json.at("ranks"));
  report.layers = layers_from(json.at("layers"));
  return report;
} catch (const nlohmann::json::exception& error) {
  fail(ExitCode::data, "report: not a report of selfcal: {}", error.what());
}

}  // namespace selfcal
