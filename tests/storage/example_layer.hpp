// Small records with every kind of field, the same in each call.
#pragma once
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <string>

#include "storage/calibration_file.hpp"
#include "storage/layer_file.hpp"
#include "storage/packing.hpp"

namespace selfcal {

inline std::string layer_prefix(int64_t layer) { return fmt::format("model.layers.{}.", layer); }
inline std::string quantised_name(int64_t layer) {
  return layer_prefix(layer) + "mlp.up_proj.weight";
}
inline std::string pruned_name(int64_t layer) {
  return layer_prefix(layer) + "mlp.down_proj.weight";
}

/// A matrix that depends on shape and seed only.
inline at::Tensor example_matrix(int64_t rows, int64_t columns, int64_t seed) {
  return at::sin(at::arange(rows * columns, at::kDouble).mul(0.7371).add(static_cast<double>(seed)))
      .reshape({rows, columns})
      .to(at::kFloat);
}

/// A quantised linear layer [rows, columns].
inline CompressedLinear example_quantised(int64_t rows, int64_t columns, int bits,
                                          int64_t group_size, bool symmetric, int64_t seed,
                                          at::ScalarType dtype) {
  CompressedLinear linear;
  const int64_t groups = columns / group_size;
  const auto integers = [&](int64_t width, int64_t shift) {
    return example_matrix(rows, width, seed + shift)
        .add(1)
        .mul((1 << bits) * 0.4999)
        .floor()
        .to(at::kByte);
  };
  linear.bits = bits;
  linear.group_size = group_size;
  linear.symmetric = symmetric;
  linear.codes = pack_codes(integers(columns, 0), bits);
  linear.scale = example_matrix(rows, groups, seed + 1).abs().add(0.01).mul(0.02).to(dtype);
  linear.zero =
      symmetric ? at::full({rows, groups}, 1 << (bits - 1), at::kByte) : integers(groups, 2);
  linear.weight = dequantise(linear, columns, dtype, "example");
  linear.relative_error = 0.01;
  linear.nearest_error = 0.02;
  linear.loss = 1.5;
  linear.damping = 0.01;
  return linear;
}

/// A pruned linear layer.
inline CompressedLinear example_pruned(int64_t rows, int64_t columns, int64_t seed,
                                       at::ScalarType dtype) {
  CompressedLinear linear;
  const at::Tensor dense = example_matrix(rows, columns, seed);
  const at::Tensor kept = dense.gt(0);
  linear.weight = dense.mul(kept).to(dtype);
  linear.mask = pack_mask(kept);
  return linear;
}

inline LayerRecord example_layer(int64_t layer) {
  LayerRecord record;
  record.layer = layer;
  record.job_id = "0123456789abcdef";
  CompressedLinear quantised = example_quantised(48, 32, 4, 16, false, layer, at::kBFloat16);
  quantised.g_idx = at::arange(32, at::kInt).remainder(2).to(at::kInt);
  quantised.weight = dequantise(quantised, 32, at::kBFloat16, "example");
  quantised.damping_retries = 2;
  quantised.dead_columns = 1;
  record.linears[quantised_name(layer)] = quantised;
  record.linears[pruned_name(layer)] = example_pruned(32, 48, layer + 10, at::kBFloat16);
  record.changed[layer_prefix(layer) + "input_layernorm.weight"] =
      example_matrix(1, 32, layer)[0].to(at::kBFloat16);
  record.source_hashes[quantised_name(layer)] = "aa";
  record.source_hashes[pruned_name(layer)] = "bb";
  return record;
}

inline CalibrationSet example_calibration() {
  CalibrationSet set;
  set.tokens = at::arange(5 * 7, at::kInt).reshape({5, 7});
  set.lengths = at::full({5}, 7, at::kInt);
  set.log_prob = example_matrix(5, 7, 1);
  set.temperature = at::ones({5, 7});
  set.source = "self";
  set.settings = R"({"length": 7})";
  set.seed = -4;
  set.set = 1;
  return set;
}

}  // namespace selfcal
