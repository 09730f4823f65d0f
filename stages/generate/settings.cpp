#include "stages/generate/settings.hpp"

#include <nlohmann/json.hpp>

namespace selfcal {
namespace {

const char* name_of(CalibrationSource source) {
  switch (source) {
    case CalibrationSource::tokens:
      return "tokens";
    case CalibrationSource::vocabulary:
      return "vocabulary";
    default:
      return "self";
  }
}

const char* name_of(EndOfText policy) {
  switch (policy) {
    case EndOfText::ban:
      return "ban";
    case EndOfText::redraw:
      return "redraw";
    default:
      return "pack";
  }
}

}  // namespace

double CalibrationSettings::temperature_at(int64_t index) const {
  if (index >= temperature_steps) return temperature_final;
  const double share = static_cast<double>(index) / static_cast<double>(temperature_steps);
  return temperature_initial + share * (temperature_final - temperature_initial);
}

std::string CalibrationSettings::identity() const {
  nlohmann::json fields = {
      {"source", name_of(source)}, {"sequences", sequences}, {"length", length}, {"set", set}};
  if (source == CalibrationSource::tokens) {
    fields["tokens_path"] = tokens_path;
    return fields.dump();
  }
  fields["seed"] = seed;
  if (source == CalibrationSource::vocabulary) return fields.dump();
  fields["micro_batch"] = micro_batch;
  fields["temperature"] = {
      {"initial", temperature_initial}, {"final", temperature_final}, {"steps", temperature_steps}};
  fields["top_k"] = top_k;
  fields["top_p"] = top_p;
  fields["end_of_text"] = name_of(end_of_text);
  fields["prompt"] = prompt == PromptKind::random ? "random" : "bos";
  return fields.dump();
}

}  // namespace selfcal
