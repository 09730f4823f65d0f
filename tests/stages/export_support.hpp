// What tests of all export formats share: a small compressed job, and packed values read by their
// definition.
#pragma once
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <optional>

#include "../storage/temporary_folder.hpp"
#include "export_model.hpp"
#include "stages/export/export.hpp"
#include "storage/layer_file.hpp"

namespace selfcal {

/// The values at bits [i * bits, (i + 1) * bits) of each row of 32-bit words, less 2^(bits - 1):
/// the published packing.
inline at::Tensor packed_values(const at::Tensor& rows_of_words, int64_t count, int bits) {
  const at::Tensor words = rows_of_words.contiguous();
  at::Tensor values = at::empty({words.size(0), count}, at::kLong);
  for (int64_t row = 0; row < words.size(0); ++row) {
    const auto* word =
        reinterpret_cast<const uint32_t*>(words.const_data_ptr<int32_t>()) + row * words.size(1);
    for (int64_t i = 0; i < count; ++i) {
      int64_t value = 0;
      for (int64_t bit = 0; bit < bits; ++bit) {
        const int64_t at = i * bits + bit;
        value |= static_cast<int64_t>((word[at / 32] >> (at % 32)) & 1) << bit;
      }
      values.mutable_data_ptr<int64_t>()[row * count + i] = value - (1 << (bits - 1));
    }
  }
  return values;
}

/// By one rank.
inline void export_alone(const ExportInputs& inputs, ExportFormat format, const fs::path& directory,
                         uint64_t shard_bytes = 5'000'000'000) {
  export_model(Communicator::local(), inputs, format, directory, shard_bytes);
}

/// Flips a bit in the codes of a committed layer.
inline void damage_codes(const fs::path& layer) {
  const at::Tensor codes = read_layer(layer).linears.begin()->second.codes.contiguous();
  std::string bytes = read_bytes(layer);
  const size_t place =
      bytes.find(std::string(static_cast<const char*>(codes.const_data_ptr()), codes.nbytes()));
  ASSERT_NE(place, std::string::npos);
  bytes[place] = static_cast<char>(bytes[place] ^ 0x01);
  write_bytes(layer, bytes);
}

class ExportFixture : public testing::Test {
 protected:
  void prepare(at::ScalarType dtype, bool tied, const export_example::Compress& compress) {
    export_example::write(folder_ / "model", job_, dtype, tied, compress);
    dense_.emplace(folder_ / "model");
  }
  ExportInputs inputs() const {
    return {*dense_, job_, export_example::layers, export_example::job_id};
  }

  TemporaryFolder folder_;
  JobDirectory job_{folder_ / "job"};
  std::optional<Checkpoint> dense_;
};

}  // namespace selfcal
