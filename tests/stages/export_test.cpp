#include "stages/export/export.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "export_support.hpp"
#include "stages/export/compressed_tensors.hpp"
#include "storage/module_name.hpp"
#include "storage/tensor_hash.hpp"

namespace selfcal {
namespace {

using export_example::Compress;
using Json = nlohmann::json;

/// What a loader makes of the packed tensors: (value - zero) * scale, every step in the scale's
/// dtype.
at::Tensor unpack_as_published(const Checkpoint& exported, const std::string& module,
                               const Json& weights) {
  const auto read = [&](const std::string& field) {
    const std::string name = module + "." + field;
    return exported.read(name, exported.entry(name).shape);
  };
  const int bits = weights["num_bits"];
  const at::Tensor scale = read("weight_scale"), shape = read("weight_shape");
  const int64_t rows = shape[0].item<int64_t>(), columns = shape[1].item<int64_t>(),
                groups = scale.size(1);
  const at::Tensor values = packed_values(read("weight_packed"), columns, bits);
  at::Tensor zeros = at::zeros({rows, groups}, at::kLong);
  if (!weights["symmetric"].get<bool>())
    zeros = packed_values(read("weight_zero_point").t(), rows, bits).t();
  const at::Tensor group = at::arange(columns).div(columns / groups, "floor");
  const at::Tensor difference =
      values.to(scale.scalar_type()) - zeros.to(scale.scalar_type()).index_select(1, group);
  return difference * scale.index_select(1, group);
}

/// The config group that a module falls into: the one that names it, else the one for the class.
const Json& weights_of(const Json& config, const std::string& module) {
  const Json* by_class = nullptr;
  for (const auto& group : config["quantization_config"]["config_groups"]) {
    for (const auto& target : group["targets"]) {
      if (target == module) return group["weights"];
      if (target == "Linear") by_class = &group["weights"];
    }
  }
  if (by_class == nullptr) throw std::runtime_error("no group for " + module);
  return *by_class;
}

class Export : public ExportFixture {
 protected:
  /// Exports both forms and compares every weight with the layer files, bit for bit.
  void expect_faithful(const std::string& name) {
    export_alone(inputs(), ExportFormat::compressed_tensors, folder_ / "packed");
    export_alone(inputs(), ExportFormat::dense, folder_ / "dense");
    const Checkpoint packed(folder_ / "packed"), dense(folder_ / "dense");
    const Json config = Json::parse(packed.config_text());
    EXPECT_EQ(dense.names(), dense_->names());
    std::set<std::string> expected_plain;
    std::vector<LayerRecord> records;
    for (int64_t layer = 0; layer < export_example::layers; ++layer)
      records.push_back(read_layer(job_.layer(layer)));
    for (const auto& tensor : dense_->names()) {
      const auto& shape = dense_->entry(tensor).shape;
      at::Tensor expected = dense_->read(tensor, shape);
      bool is_packed = false;
      for (const auto& record : records) {
        if (record.changed.contains(tensor)) expected = record.changed.at(tensor);
        if (!record.linears.contains(tensor)) continue;
        expected = record.linears.at(tensor).weight;
        is_packed = record.linears.at(tensor).codes.defined();
      }
      EXPECT_EQ(tensor_hash(dense.read(tensor, shape)), tensor_hash(expected)) << tensor;
      const std::string module = module_of(tensor);
      if (is_packed) {
        EXPECT_FALSE(packed.contains(tensor));
        EXPECT_EQ(tensor_hash(unpack_as_published(packed, module, weights_of(config, module))),
                  tensor_hash(expected))
            << tensor;
      } else {
        EXPECT_EQ(tensor_hash(packed.read(tensor, shape)), tensor_hash(expected)) << tensor;
        if (shape.size() == 2) expected_plain.insert(module);
      }
    }
    expected_plain.insert("lm_head");
    const std::set<std::string> ignore = config["quantization_config"]["ignore"];
    EXPECT_EQ(ignore, expected_plain);
    keep(name);
  }

  /// Leaves both exports for the check with transformers (tests/python/export_weights_test.py),
  /// where asked.
  void keep(const std::string& name) {
    const char* to = std::getenv("SELFCAL_KEEP_EXPORTS");
    if (to == nullptr) return;
    fs::create_directories(fs::path(to) / name);
    for (const char* form : {"packed", "dense"})
      fs::copy(folder_ / form, fs::path(to) / name / form, fs::copy_options::recursive);
  }
};

Compress uniform(int bits, int64_t group_size, bool symmetric, at::ScalarType dtype) {
  return [=](int64_t layer, const std::string&, int64_t rows, int64_t columns) {
    return example_quantised(rows, columns, bits, group_size < 0 ? columns : group_size, symmetric,
                             layer, dtype);
  };
}

TEST_F(Export, FourBitsSymmetric) {
  prepare(at::kBFloat16, true, uniform(4, 16, true, at::kBFloat16));
  expect_faithful("symmetric");
  const Json config =
      Json::parse(Checkpoint(folder_ / "packed").config_text())["quantization_config"];
  EXPECT_EQ(config["config_groups"].size(), 1U);
  EXPECT_EQ(config["config_groups"]["group_0"]["targets"], Json::array({"Linear"}));
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["group_size"], 16);
  EXPECT_EQ(config["format"], "pack-quantized");
}

TEST_F(Export, ThreeBitsAsymmetricInHalfPrecision) {
  prepare(at::kHalf, false, uniform(3, 16, false, at::kHalf));
  expect_faithful("asymmetric");
}

TEST_F(Export, EightBitsWholeRowsInFloat) {
  prepare(at::kFloat, false, uniform(8, -1, false, at::kFloat));
  expect_faithful("whole_rows");
  const Json config =
      Json::parse(Checkpoint(folder_ / "packed").config_text())["quantization_config"];
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["strategy"], "channel");
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["group_size"], nullptr);
}

TEST_F(Export, MixedSchemesNameTheirModules) {
  prepare(at::kBFloat16, false,
          [](int64_t layer, const std::string& name, int64_t rows, int64_t columns) {
            if (layer == 0 && name == "mlp.down_proj")
              return example_quantised(rows, columns, 8, columns, true, 3, at::kBFloat16);
            if (layer == 1 && name == "self_attn.o_proj") return CompressedLinear();  // skipped
            if (layer == 1 && name == "mlp.up_proj")
              return example_pruned(rows, columns, 4, at::kBFloat16);  // pruned only
            if (layer == 2) return example_quantised(rows, columns, 4, 16, false, 5, at::kBFloat16);
            return example_quantised(rows, columns, 4, 16, true, 6, at::kBFloat16);
          });
  expect_faithful("mixed");
  const Json config =
      Json::parse(Checkpoint(folder_ / "packed").config_text())["quantization_config"];
  EXPECT_EQ(config["config_groups"].size(), 3U);
}

TEST_F(Export, OddNumbersOfBits) {
  prepare(at::kBFloat16, false,
          [](int64_t layer, const std::string&, int64_t rows, int64_t columns) {
            return example_quantised(rows, columns, 5 + static_cast<int>(layer), 16, layer == 1,
                                     layer, at::kBFloat16);
          });
  expect_faithful("odd_bits");
}

TEST_F(Export, PrunedAndQuantised) {
  prepare(at::kBFloat16, false,
          [](int64_t layer, const std::string&, int64_t rows, int64_t columns) {
            CompressedLinear linear =
                example_quantised(rows, columns, 4, 16, false, layer, at::kBFloat16);
            at::Tensor kept = at::ones({rows, columns / 4, 4}, at::kBool);
            kept.narrow(2, layer, 2).fill_(false);  // 2:4
            at::Tensor codes = unpack_codes(linear.codes, 4, columns);
            const at::Tensor zero = linear.zero.repeat_interleave(16, 1);
            kept = kept.view({rows, columns});
            linear.codes = pack_codes(at::where(kept, codes, zero).contiguous(), 4);
            linear.mask = pack_mask(kept.to(at::kByte));
            linear.weight = dequantise(linear, columns, at::kBFloat16, "example");
            return linear;
          });
  expect_faithful("joint");
  const Checkpoint dense(folder_ / "dense");
  const std::string name = layer_prefix(1) + "mlp.up_proj.weight";
  const at::Tensor weight = dense.read(name, dense.entry(name).shape);
  EXPECT_GE(weight.eq(0).to(at::kDouble).mean().item<double>(), 0.5);
}

TEST_F(Export, PrunedModelsAreDense) {
  prepare(at::kBFloat16, false,
          [](int64_t layer, const std::string&, int64_t rows, int64_t columns) {
            return example_pruned(rows, columns, layer, at::kBFloat16);
          });
  export_alone(inputs(), ExportFormat::dense, folder_ / "dense");
  const Checkpoint dense(folder_ / "dense");
  const std::string name = layer_prefix(1) + "mlp.up_proj.weight";
  EXPECT_EQ(tensor_hash(dense.read(name, dense.entry(name).shape)),
            tensor_hash(read_layer(job_.layer(1)).linears.at(name).weight));
  EXPECT_FALSE(Json::parse(dense.config_text()).contains("quantization_config"));
  expect_error(ExitCode::config, "no layer is quantised", [&] {
    export_alone(inputs(), ExportFormat::compressed_tensors, folder_ / "packed");
  });
  EXPECT_FALSE(fs::exists(folder_ / "packed"));
}

TEST_F(Export, DtypeOfTheConfigIsThatOfTheWeights) {
  prepare(at::kBFloat16, false, uniform(4, 16, true, at::kFloat));
  export_alone(inputs(), ExportFormat::compressed_tensors, folder_ / "packed");
  EXPECT_EQ(Json::parse(Checkpoint(folder_ / "packed").config_text())["torch_dtype"], "float32");
}

TEST_F(Export, ScalesThatALoaderWouldRoundAreRefused) {
  prepare(
      at::kBFloat16, false, [](int64_t layer, const std::string&, int64_t rows, int64_t columns) {
        CompressedLinear linear = example_quantised(rows, columns, 4, 16, true, layer, at::kFloat);
        linear.weight = dequantise(linear, columns, at::kBFloat16, "example");
        return linear;
      });
  expect_error(ExitCode::config, "model.layers.0.mlp.down_proj.weight: scales are F32", [&] {
    export_alone(inputs(), ExportFormat::compressed_tensors, folder_ / "packed");
  });
  export_alone(inputs(), ExportFormat::dense, folder_ / "dense");
}

TEST_F(Export, ShardsHoldWhatOneFileHolds) {
  prepare(at::kBFloat16, false, uniform(4, 16, false, at::kBFloat16));
  export_alone(inputs(), ExportFormat::compressed_tensors, folder_ / "one");
  export_alone(inputs(), ExportFormat::compressed_tensors, folder_ / "many", 20'000);
  const Checkpoint one(folder_ / "one"), many(folder_ / "many");
  EXPECT_EQ(one.names(), many.names());
  for (const auto& name : one.names())
    EXPECT_EQ(tensor_hash(one.read(name, one.entry(name).shape)),
              tensor_hash(many.read(name, many.entry(name).shape)));
  EXPECT_TRUE(fs::exists(folder_ / "many" / "model-00001-of-00004.safetensors") ||
              fs::exists(folder_ / "many" / "model.safetensors.index.json"));
  for (const auto& entry : fs::directory_iterator(folder_ / "many"))
    EXPECT_TRUE(entry.path().extension() != ".safetensors" || entry.file_size() < 25'000U)
        << entry.path();
}

TEST_F(Export, CompanionFilesComeAlong) {
  prepare(at::kBFloat16, false, uniform(4, 16, true, at::kBFloat16));
  write_bytes(folder_ / "model" / "pytorch_model.bin", "old weights");
  export_alone(inputs(), ExportFormat::dense, folder_ / "dense");
  EXPECT_EQ(read_bytes(folder_ / "dense" / "tokenizer.json"), "{}\n");
  EXPECT_TRUE(fs::exists(folder_ / "dense" / "generation_config.json"));
  EXPECT_FALSE(fs::exists(folder_ / "dense" / "pytorch_model.bin"));
}

TEST_F(Export, NothingIsOverwrittenOrLeftHalf) {
  prepare(at::kBFloat16, false, uniform(4, 16, true, at::kBFloat16));
  const auto run = [&](const fs::path& to) { export_alone(inputs(), ExportFormat::dense, to); };
  fs::create_directories(folder_ / "there");
  expect_error(ExitCode::usage, "exists already", [&] { run(folder_ / "there"); });
  expect_error(ExitCode::usage, "exists already", [&] { run(folder_ / "there/"); });
  fs::resize_file(job_.layer(2), 1000);
  expect_error(ExitCode::data, "0002.h5", [&] { run(folder_ / "out"); });
  fs::remove(job_.layer(2));
  expect_error(ExitCode::data, "layer 2 is not committed", [&] { run(folder_ / "out"); });
  ExportInputs other = inputs();
  other.job_id = "other";
  expect_error(ExitCode::data, "expected layer 0 of job other",
               [&] { export_alone(other, ExportFormat::dense, folder_ / "out"); });
  for (const auto& entry : fs::directory_iterator(folder_.path()))
    EXPECT_TRUE(entry.path().filename() == "model" || entry.path().filename() == "job" ||
                entry.path().filename() == "there")
        << entry.path();
}

/// Headers are surveyed first; the tensors of a layer whose header is whole are checked when they
/// are packed.
TEST_F(Export, DamagedTensorLeavesNothing) {
  prepare(at::kBFloat16, false, uniform(4, 16, true, at::kBFloat16));
  const fs::path last = job_.layer(export_example::layers - 1);
  ASSERT_NO_FATAL_FAILURE(damage_codes(last));
  for (const auto format : {ExportFormat::compressed_tensors, ExportFormat::dense})
    expect_error(ExitCode::data, last.filename().string() + ": damaged: content hash found",
                 [&] { export_alone(inputs(), format, folder_ / "out"); });
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

/// One layer is packed ahead for all of its shape; what it holds is checked in each.
TEST_F(Export, EveryLayerIsCheckedInEveryFormat) {
  prepare(at::kBFloat16, false,
          [](int64_t layer, const std::string&, int64_t rows, int64_t columns) {
            CompressedLinear linear =
                example_quantised(rows, columns, 4, 16, false, layer, at::kBFloat16);
            linear.symmetric = true;
            if (layer + 1 < export_example::layers) linear.zero.fill_(8);
            linear.weight = dequantise(linear, columns, at::kBFloat16, "weight");
            return linear;
          });
  for (const auto format : {ExportFormat::compressed_tensors, ExportFormat::gptq,
                            ExportFormat::gptq_v2, ExportFormat::awq})
    expect_error(ExitCode::data, "symmetric, but a zero is not 8",
                 [&] { export_alone(inputs(), format, folder_ / "out"); });
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

TEST_F(Export, FullDiskLeavesNothing) {
  prepare(at::kBFloat16, false, uniform(4, 16, true, at::kBFloat16));
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{10'000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  expect_error(ExitCode::io, "model.safetensors: write failed",
               [&] { export_alone(inputs(), ExportFormat::compressed_tensors, folder_ / "out"); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  for (const auto& entry : fs::directory_iterator(folder_.path()))
    EXPECT_TRUE(entry.path().filename() == "model" || entry.path().filename() == "job")
        << entry.path();
}

TEST(ExportFormat, NamesAreListed) {
  EXPECT_EQ(export_format_of("dense"), ExportFormat::dense);
  EXPECT_EQ(export_format_of("compressed-tensors"), ExportFormat::compressed_tensors);
  expect_error(ExitCode::config, "expected compressed-tensors, gptq, gptq_v2, awq or dense",
               [] { export_format_of("gguf"); });
}

}  // namespace
}  // namespace selfcal
