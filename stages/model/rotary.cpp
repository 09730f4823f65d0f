#include "stages/model/rotary.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"

namespace selfcal {
namespace {

/// The positions that the model was trained with before it was stretched.
double original_length(const ModelConfig& config, const ModelConfig& scaling) {
  const char* key = "original_max_position_embeddings";
  if (config.contains(key)) return static_cast<double>(config.integer(key));
  return static_cast<double>(scaling.contains(key) ? scaling.integer(key)
                                                   : config.integer("max_position_embeddings"));
}

double positive_factor(const ModelConfig& scaling) {
  const double factor = scaling.number("factor");
  if (!(factor > 0))
    fail(ExitCode::data, "{}: factor: {}, expected a positive number", scaling.where(), factor);
  return factor;
}

/// How far a model was stretched: `factor`, or the quotient of its lengths.
double stretch(const ModelConfig& config, const ModelConfig& scaling) {
  if (scaling.contains("factor")) return positive_factor(scaling);
  return config.number("max_position_embeddings") / original_length(config, scaling);
}

at::Tensor periods(double theta, int64_t dim) {
  return at::pow(at::Scalar(theta), at::arange(0, dim, 2, at::kFloat) / static_cast<double>(dim));
}

/// Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1).
at::Tensor scale_as_llama3(const at::Tensor& frequencies, const ModelConfig& config,
                           const ModelConfig& scaling) {
  const double factor = positive_factor(scaling), low = scaling.number("low_freq_factor"),
               high = scaling.number("high_freq_factor"),
               original = original_length(config, scaling);
  const at::Tensor wavelength = 2 * M_PI / frequencies;
  const at::Tensor smooth = (original / wavelength - low) / (high - low);
  const at::Tensor blended = (1 - smooth) * frequencies / factor + smooth * frequencies;
  const at::Tensor stretched =
      at::where(wavelength > original / low, frequencies / factor, blended);
  return at::where(wavelength < original / high, frequencies, stretched);
}

/// YaRN (Peng et al., arXiv 2309.00071): dimensions that turn often are kept, those that turn less
/// than once are stretched, with a ramp between; attention is sharpened by the magnitude.
RotaryAngles scale_as_yarn(const ModelConfig& config, const ModelConfig& scaling, int64_t dim,
                           double theta) {
  const double factor = stretch(config, scaling), original = original_length(config, scaling);
  const auto sharpness = [&](double weight) {
    return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
  };
  const double mscale = scaling.number("mscale", 0),
               mscale_all = scaling.number("mscale_all_dim", 0);
  const double magnitude =
      mscale != 0 && mscale_all != 0 ? sharpness(mscale) / sharpness(mscale_all) : sharpness(1);

  const auto dimension_of = [&](double rotations) {
    return static_cast<double>(dim) * std::log(original / (rotations * 2 * M_PI)) /
           (2 * std::log(theta));
  };
  double low = dimension_of(scaling.number("beta_fast", 32)),
         high = dimension_of(scaling.number("beta_slow", 1));
  if (scaling.flag("truncate", true)) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;

  const at::Tensor period = periods(theta, dim);
  const at::Tensor kept = 1 - ((at::arange(dim / 2, at::kFloat) - low) / (high - low)).clamp(0, 1);
  return {1.0 / (factor * period) * (1 - kept) + 1.0 / period * kept,
          scaling.number("attention_factor", magnitude)};
}

/// LongRoPE (Ding et al., arXiv 2402.13753) at the lengths of its short factors.
RotaryAngles scale_as_longrope(const ModelConfig& config, const ModelConfig& scaling, int64_t dim,
                               double theta) {
  const double factor = stretch(config, scaling), original = original_length(config, scaling);
  const auto shorts = scaling.numbers("short_factor");
  if (static_cast<int64_t>(shorts.size()) != dim / 2)
    fail(ExitCode::data, "{}: short_factor: {} numbers, expected {}", scaling.where(),
         shorts.size(), dim / 2);
  const double magnitude = factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(original));
  return {1.0 / (at::tensor(shorts).to(at::kFloat) * periods(theta, dim)),
          scaling.number("attention_factor", magnitude), static_cast<int64_t>(original)};
}

}  // namespace

RotaryAngles rotary_angles(const ModelConfig& config, const std::optional<ModelConfig>& scaling,
                           int64_t dim, double theta) {
  if (scaling) theta = scaling->number("rope_theta", theta);
  if (!(theta > 1))
    fail(ExitCode::data, "{}: rope_theta: {}, expected a number above 1", config.where(), theta);
  const std::string type =
      scaling ? scaling->text("rope_type", scaling->text("type", "default")) : "default";
  // (The last of an odd number of entries turns with the one behind it, as in transformers' NeoX.)
  if (dim < 1 || (dim % 2 != 0 && (type == "yarn" || type == "longrope")))
    fail(ExitCode::data, "{}: {} entries of a head are rotated, expected an even number",
         config.where(), dim);
  const at::Tensor frequencies = 1.0 / periods(theta, dim);
  if (type == "default") return {frequencies};
  if (type == "linear") return {frequencies / positive_factor(*scaling)};
  if (type == "dynamic") return {frequencies, 1, config.integer("max_position_embeddings")};
  if (type == "llama3") return {scale_as_llama3(frequencies, config, *scaling)};
  if (type == "yarn") return scale_as_yarn(config, *scaling, dim, theta);
  if (type == "longrope") return scale_as_longrope(config, *scaling, dim, theta);
  fail(ExitCode::data,
       "{}: rope_type '{}' is not supported (default, linear, dynamic, llama3, yarn, longrope are)",
       scaling->where(), type);
}

RotaryAngles rotary_angles(const ModelConfig& config, int64_t dim, double default_theta) {
  const auto parameters = config.object("rope_parameters");
  return rotary_angles(config, parameters ? parameters : config.object("rope_scaling"), dim,
                       config.number("rope_theta", default_theta));
}

void Rotary::apply(const kernels::Context& context, at::Tensor& x, const at::Tensor& positions,
                   int64_t length) const {
  grow(length, context.device);
  kernels::rotate(context, x, positions, cosine_, sine_);
}

void Rotary::grow(int64_t length, const kernels::Device& device) const {
  const int64_t have = cosine_.defined() ? cosine_.size(0) : 0;
  if (length <= have) return;
  length = std::max(length, 2 * have);
  const int64_t half = angles_.frequencies.numel();
  cosine_ = at::empty({length, half}, at::kFloat);
  sine_ = at::empty({length, half}, at::kFloat);
  const float* frequency = angles_.frequencies.const_data_ptr<float>();
  const auto magnitude = static_cast<float>(angles_.magnitude);
  float *cosine = cosine_.mutable_data_ptr<float>(), *sine = sine_.mutable_data_ptr<float>();
  for (int64_t position = 0; position < length; ++position)
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<float>(position) * frequency[i];  // rounded to float32, as in transformers
      *cosine++ = static_cast<float>(std::cos(angle)) * magnitude;
      *sine++ = static_cast<float>(std::sin(angle)) * magnitude;
    }
  cosine_ = cosine_.to(device.memory);
  sine_ = sine_.to(device.memory);
}

}  // namespace selfcal
