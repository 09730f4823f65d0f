// Calibration sets that need no model: token files and uniform random ids.
#include <ATen/ATen.h>

#include <array>

#include "base/error.hpp"
#include "base/random.hpp"
#include "stages/generate/generator.hpp"
#include "storage/tensor_file.hpp"

namespace selfcal {
namespace {

CalibrationSet given(const CalibrationSettings& settings, const at::Tensor& tokens,
                     const char* source) {
  CalibrationSet set;
  set.tokens = tokens;
  set.lengths = at::full({settings.sequences}, settings.length, at::kInt);
  set.log_prob = at::zeros({settings.sequences, settings.length});
  set.temperature = at::zeros_like(set.log_prob);
  set.source = source;
  set.settings = settings.identity();
  set.seed = settings.seed;
  set.set = settings.set;
  return set;
}

bool is_hdf5(const fs::path& path) {
  constexpr std::array<unsigned char, 8> signature = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
  std::array<std::byte, 8> start{};
  const InputFile file(path);
  if (file.size() < start.size()) return false;
  file.read_at(0, start);
  return std::equal(
      start.begin(), start.end(), signature.begin(),
      [](std::byte a, unsigned char b) { return std::to_integer<unsigned char>(a) == b; });
}

void check_shape(const std::string& path, const CalibrationSettings& settings,
                 at::IntArrayRef shape) {
  if (shape.size() != 2)
    fail(ExitCode::data, "{}: token ids have {} dimensions, expected [sequences, length]", path,
         shape.size());
  const int64_t needed = (settings.set + 1) * settings.sequences;
  if (shape[0] < needed)
    fail(ExitCode::data, "{}: {} rows of tokens, set {} of {} sequences needs {}", path, shape[0],
         settings.set, settings.sequences, needed);
  if (shape[1] < settings.length)
    fail(ExitCode::data, "{}: rows of {} tokens, expected at least calibration.length {}", path,
         shape[1], settings.length);
}

/// Rows [first, first + sequences) of a calibration file.
at::Tensor read_calibration_rows(const CalibrationSettings& settings, int64_t first) {
  const auto& path = settings.tokens_path;
  const CalibrationSet set = read_calibration(path);
  check_shape(path, settings, set.tokens.sizes());
  const auto lengths = set.lengths.narrow(0, first, settings.sequences);
  const auto shortest = lengths.min().item<int64_t>();
  if (shortest < settings.length)
    fail(ExitCode::data, "{}: row {} has {} tokens, expected at least calibration.length {}", path,
         first + lengths.argmin().item<int64_t>(), shortest, settings.length);
  return set.tokens.narrow(0, first, settings.sequences);
}

at::Tensor read_safetensors_rows(const CalibrationSettings& settings, int64_t first) {
  const auto& path = settings.tokens_path;
  const TensorFile file{path};
  if (!file.contains("input_ids"))
    fail(ExitCode::data, "{}: no tensor 'input_ids' of int32 or int64 [sequences, length]", path);
  const TensorEntry& entry = file.entries().at("input_ids");
  if (entry.dtype != at::kInt && entry.dtype != at::kLong)
    fail(ExitCode::data, "{}: tensor 'input_ids' is {}, expected int32 or int64", path,
         at::toString(entry.dtype));
  check_shape(path, settings, entry.shape);
  return file.read_rows("input_ids", first, settings.sequences);
}

}  // namespace

CalibrationSet read_token_source(const CalibrationSettings& settings, const ModelShape& shape) {
  const int64_t first = settings.set * settings.sequences;
  const at::Tensor rows = is_hdf5(settings.tokens_path) ? read_calibration_rows(settings, first)
                                                        : read_safetensors_rows(settings, first);
  const at::Tensor tokens = rows.narrow(1, 0, settings.length);
  const at::Tensor outside = at::logical_or(tokens < 0, tokens >= shape.vocabulary).nonzero();
  if (outside.size(0) > 0) {
    const auto row = outside[0][0].item<int64_t>(), column = outside[0][1].item<int64_t>();
    fail(ExitCode::data, "{}: row {}, position {}: token id {}, expected 0 to {}",
         settings.tokens_path, first + row, column, tokens[row][column].item<int64_t>(),
         shape.vocabulary - 1);
  }
  return given(settings, tokens.to(at::kInt).contiguous(), "tokens");
}

CalibrationSet draw_vocabulary(const CalibrationSettings& settings, const ModelShape& shape) {
  auto tokens = at::empty({settings.sequences, settings.length}, at::kInt);
  auto* next = tokens.mutable_data_ptr<int32_t>();
  for (int64_t sequence = 0; sequence < settings.sequences; ++sequence)
    for (int64_t position = 0; position < settings.length; ++position)
      *next++ = static_cast<int32_t>(
          uniform({static_cast<uint64_t>(settings.seed), static_cast<uint32_t>(settings.set),
                   static_cast<uint32_t>(sequence), 0, static_cast<uint32_t>(position)}) *
          static_cast<double>(shape.vocabulary));
  return given(settings, tokens, "vocabulary");
}

}  // namespace selfcal
