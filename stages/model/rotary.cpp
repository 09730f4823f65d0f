#include "stages/model/rotary.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"

namespace selfcal {
namespace {

/// Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1).
at::Tensor scale_as_llama3(const at::Tensor& frequencies, const ModelConfig& scaling) {
  const double factor = scaling.number("factor"), low = scaling.number("low_freq_factor"),
               high = scaling.number("high_freq_factor"),
               original = scaling.number("original_max_position_embeddings");
  const at::Tensor wavelength = 2 * M_PI / frequencies;
  const at::Tensor smooth = (original / wavelength - low) / (high - low);
  const at::Tensor blended = (1 - smooth) * frequencies / factor + smooth * frequencies;
  const at::Tensor stretched =
      at::where(wavelength > original / low, frequencies / factor, blended);
  return at::where(wavelength < original / high, frequencies, stretched);
}

}  // namespace

at::Tensor inverse_frequencies(const ModelConfig& config, int64_t dim, double default_theta) {
  const auto parameters = config.object("rope_parameters");
  const auto scaling = parameters ? parameters : config.object("rope_scaling");
  const double theta = parameters && parameters->contains("rope_theta")
                           ? parameters->number("rope_theta")
                           : config.number("rope_theta", default_theta);
  if (!(theta > 0))
    fail(ExitCode::data, "{}: rope_theta: {}, expected a positive number", config.where(), theta);
  const at::Tensor exponents = at::arange(0, dim, 2, at::kFloat) / static_cast<double>(dim);
  const at::Tensor frequencies = 1.0 / at::pow(at::Scalar(theta), exponents);
  if (!scaling) return frequencies;

  const std::string type = scaling->text("rope_type", scaling->text("type", "default"));
  if (type == "default") return frequencies;
  const double factor = scaling->number("factor");
  if (!(factor > 0))
    fail(ExitCode::data, "{}: factor: {}, expected a positive number", scaling->where(), factor);
  if (type == "linear") return frequencies / factor;
  if (type == "llama3") return scale_as_llama3(frequencies, *scaling);
  fail(ExitCode::data, "{}: rope_type '{}' is not supported (default, linear, llama3 are)",
       scaling->where(), type);
}

void Rotary::apply(const kernels::Context& context, at::Tensor& x, const at::Tensor& positions,
                   int64_t length) const {
  grow(length);
  kernels::rotate(context, x, positions, cosine_, sine_);
}

void Rotary::grow(int64_t length) const {
  const int64_t have = cosine_.defined() ? cosine_.size(0) : 0;
  if (length <= have) return;
  length = std::max(length, 2 * have);
  const int64_t half = frequencies_.numel();
  cosine_ = at::empty({length, half}, at::kFloat);
  sine_ = at::empty({length, half}, at::kFloat);
  const float* frequency = frequencies_.const_data_ptr<float>();
  float *cosine = cosine_.mutable_data_ptr<float>(), *sine = sine_.mutable_data_ptr<float>();
  for (int64_t position = 0; position < length; ++position)
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<float>(position) * frequency[i];  // rounded to float32, as in transformers
      *cosine++ = static_cast<float>(std::cos(angle));
      *sine++ = static_cast<float>(std::sin(angle));
    }
}

}  // namespace selfcal
