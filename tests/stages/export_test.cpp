#include "stages/export/export.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "../storage/temporary_folder.hpp"
#include "export_model.hpp"
#include "stages/export/compressed_tensors.hpp"
#include "storage/tensor_hash.hpp"

namespace selfcal {
namespace {

using export_example::Compress;
using Json = nlohmann::json;

/// The values at bits [i * bits, (i + 1) * bits) of each row of 32-bit words, less 2^(bits - 1):
/// the published packing.
at::Tensor packed_values(const at::Tensor& rows_of_words, int64_t count, int bits) {
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
  at::Tensor group = at::arange(columns).div(columns / groups, "floor");
  if (weights["actorder"] == "group") group = read("weight_g_idx").to(at::kLong);
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

class Export : public testing::Test {
 protected:
  void prepare(at::ScalarType dtype, bool tied, const Compress& compress) {
    export_example::write(folder_ / "model", job_, dtype, tied, compress);
    dense_.emplace(folder_ / "model");
  }
  ExportInputs inputs() const {
    return {*dense_, job_, export_example::layers, export_example::job_id};
  }

  /// Exports both forms and compares every weight with the layer files, bit for bit.
  void expect_faithful(const std::string& name) {
    export_model(inputs(), ExportFormat::compressed_tensors, folder_ / "packed");
    export_model(inputs(), ExportFormat::dense, folder_ / "dense");
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
      const std::string module = compressed_tensors::module_of(tensor);
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

  TemporaryFolder folder_;
  JobDirectory job_{folder_ / "job"};
  std::optional<Checkpoint> dense_;
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

TEST_F(Export, GroupIndexIsWritten) {
  prepare(at::kBFloat16, false,
          [](int64_t layer, const std::string&, int64_t rows, int64_t columns) {
            CompressedLinear linear =
                example_quantised(rows, columns, 4, 16, true, layer, at::kBFloat16);
            linear.g_idx = at::arange(columns, at::kInt).remainder(columns / 16).to(at::kInt);
            linear.weight = dequantise(linear, columns, at::kBFloat16, "example");
            return linear;
          });
  expect_faithful("group_index");
}

/// Reads the gptq format (version 1) from its definition: AutoGPTQ, qlinear_cuda_old.
at::Tensor unpack_gptq(const Checkpoint& exported, const std::string& module, int bits) {
  const auto read = [&](const std::string& field) {
    const std::string name = module + "." + field;
    return exported.read(name, exported.entry(name).shape);
  };
  const at::Tensor scales = read("scales"), group = read("g_idx").to(at::kLong);
  const int64_t groups = scales.size(0), rows = scales.size(1), columns = group.size(0);
  EXPECT_EQ(scales.scalar_type(), at::kHalf);
  const int offset = 1 << (bits - 1);
  const at::Tensor codes =
      packed_values(read("qweight").t(), columns, bits) + offset;  // [rows, columns]
  const at::Tensor zeros =
      packed_values(read("qzeros"), rows, bits) + offset + 1;  // [groups, rows]
  EXPECT_EQ(zeros.size(0), groups);
  return (codes - zeros.t().index_select(1, group)).to(at::kFloat) *
         scales.to(at::kFloat).t().index_select(1, group);
}

/// Reads the awq gemm format from its definition: AutoAWQ, utils/packing_utils.py.
at::Tensor unpack_awq(const Checkpoint& exported, const std::string& module) {
  const auto read = [&](const std::string& field) {
    const std::string name = module + "." + field;
    return exported.read(name, exported.entry(name).shape);
  };
  const auto unpacked = [](const at::Tensor& words) {
    constexpr int64_t place[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // of output i within its word
    at::Tensor values = at::empty({words.size(0), words.size(1) * 8}, at::kLong);
    for (int64_t row = 0; row < words.size(0); ++row)
      for (int64_t i = 0; i < values.size(1); ++i) {
        const auto word =
            static_cast<uint32_t>(words.const_data_ptr<int32_t>()[row * words.size(1) + i / 8]);
        values.mutable_data_ptr<int64_t>()[row * values.size(1) + i] =
            (word >> (4 * place[i % 8])) & 15;
      }
    return values;
  };
  const at::Tensor scales = read("scales").to(at::kFloat), codes = unpacked(read("qweight")),
                   zeros = unpacked(read("qzeros"));
  const int64_t columns = codes.size(0), size = columns / scales.size(0);
  const at::Tensor group = at::arange(columns).div(size, "floor");
  return ((codes - zeros.index_select(0, group)).to(at::kFloat) * scales.index_select(0, group))
      .t();
}

/// Scales and zeros that every format can hold.
Compress suited(int bits, int64_t group_size, bool symmetric, bool by_index = false) {
  return [=](int64_t layer, const std::string& name, int64_t rows, int64_t columns) {
    if (layer == 1 && name == "self_attn.o_proj") return CompressedLinear();
    CompressedLinear linear =
        example_quantised(rows, columns, bits, group_size < 0 ? columns : group_size, symmetric,
                          layer, at::kBFloat16);
    linear.zero = linear.zero.clamp_min(1);
    if (by_index)
      linear.g_idx = at::arange(columns, at::kInt).remainder(columns / group_size).to(at::kInt);
    linear.weight = dequantise(linear, columns, at::kBFloat16, "example");
    return linear;
  };
}

TEST_F(Export, GptqFormatHoldsTheSameWeights) {
  struct Form {
    int bits;
    int64_t group_size;
    bool symmetric, by_index;
  };
  int number = 0;
  for (const Form& form :
       {Form{4, 16, true, false}, Form{4, 16, false, false}, Form{2, 16, false, false},
        Form{8, -1, true, false}, Form{4, 16, true, true}}) {
    const JobDirectory job(folder_ / fmt::format("job{}", ++number));
    const fs::path model = folder_ / fmt::format("model{}", number),
                   out = folder_ / fmt::format("gptq{}", number);
    export_example::write(model, job, at::kBFloat16, false,
                          suited(form.bits, form.group_size, form.symmetric, form.by_index));
    const Checkpoint dense(model);
    export_model({dense, job, export_example::layers, export_example::job_id}, ExportFormat::gptq,
                 out);
    const Checkpoint exported(out);
    const Json config = Json::parse(exported.config_text())["quantization_config"];
    EXPECT_EQ(config["quant_method"], "gptq");
    EXPECT_EQ(config["bits"], form.bits);
    EXPECT_EQ(config["group_size"], form.group_size);
    EXPECT_EQ(config["desc_act"], form.by_index);
    EXPECT_EQ(config["dynamic"],
              Json::parse(R"({"-:^model\\.layers\\.1\\.self_attn\\.o_proj$": {}})"));
    for (int64_t layer = 0; layer < export_example::layers; ++layer)
      for (const auto& [name, linear] : read_layer(job.layer(layer)).linears) {
        const at::Tensor weight =
            unpack_gptq(exported, compressed_tensors::module_of(name), form.bits);
        EXPECT_EQ(tensor_hash(weight.to(at::kBFloat16).contiguous()), tensor_hash(linear.weight))
            << name;
      }
  }
}

TEST_F(Export, GptqFormatNamesOtherSchemes) {
  prepare(at::kBFloat16, false,
          [](int64_t layer, const std::string& name, int64_t rows, int64_t columns) {
            return suited(name == "mlp.up_proj" ? 8 : 4, 16, true)(layer, name, rows, columns);
          });
  export_model(inputs(), ExportFormat::gptq, folder_ / "gptq");
  const Json config =
      Json::parse(Checkpoint(folder_ / "gptq").config_text())["quantization_config"];
  EXPECT_EQ(config["bits"], 4);
  EXPECT_EQ(config["dynamic"]["+:^model\\.layers\\.0\\.mlp\\.up_proj$"]["bits"], 8);
}

TEST_F(Export, AwqFormatHoldsTheSameWeights) {
  prepare(at::kBFloat16, false, suited(4, 16, false));
  export_model(inputs(), ExportFormat::awq, folder_ / "awq");
  const Checkpoint exported(folder_ / "awq");
  const Json config = Json::parse(exported.config_text())["quantization_config"];
  EXPECT_EQ(config["version"], "gemm");
  EXPECT_EQ(config["modules_to_not_convert"], Json::array({"model.layers.1.self_attn.o_proj"}));
  for (int64_t layer = 0; layer < export_example::layers; ++layer)
    for (const auto& [name, linear] : read_layer(job_.layer(layer)).linears) {
      const at::Tensor weight = unpack_awq(exported, compressed_tensors::module_of(name));
      EXPECT_EQ(tensor_hash(weight.to(at::kBFloat16).contiguous()), tensor_hash(linear.weight))
          << name;
    }
}

TEST_F(Export, WhatAFormatCannotHoldIsRefused) {
  int number = 0;
  const auto refused = [&](ExportFormat format, const Compress& compress, const std::string& text) {
    const JobDirectory job(folder_ / fmt::format("job{}", ++number));
    export_example::write(folder_ / fmt::format("model{}", number), job, at::kBFloat16, false,
                          compress);
    const Checkpoint dense(folder_ / fmt::format("model{}", number));
    expect_error(ExitCode::config, text, [&] {
      export_model({dense, job, export_example::layers, export_example::job_id}, format,
                   folder_ / "out");
    });
    EXPECT_FALSE(fs::exists(folder_ / "out"));
  };
  refused(ExportFormat::awq, suited(8, 16, true), "8 bits, the awq format has 4");
  refused(ExportFormat::awq, suited(4, 16, true, true), "act_order: dynamic");
  refused(ExportFormat::gptq, suited(5, 16, true), "5 bits, the gptq format has 2, 3, 4 and 8");
  refused(ExportFormat::gptq, suited(3, 16, true), "do not fill words of 32 bits");
  refused(
      ExportFormat::gptq,
      [](int64_t layer, const std::string& name, int64_t rows, int64_t columns) {
        CompressedLinear linear = suited(4, 16, false)(layer, name, rows, columns);
        if (linear.zero.defined()) {
          linear.zero = at::zeros_like(linear.zero);
          linear.weight = dequantise(linear, columns, at::kBFloat16, "example");
        }
        return linear;
      },
      "a zero point is 0");
  refused(
      ExportFormat::awq,
      [](int64_t layer, const std::string& name, int64_t rows, int64_t columns) {
        CompressedLinear linear = suited(4, 16, true)(layer, name, rows, columns);
        if (linear.scale.defined()) {
          linear.scale = at::full_like(linear.scale, 1e-9);
          linear.weight = dequantise(linear, columns, at::kBFloat16, "example");
        }
        return linear;
      },
      "cannot hold");
}

TEST_F(Export, PrunedModelsAreDense) {
  prepare(at::kBFloat16, false,
          [](int64_t layer, const std::string&, int64_t rows, int64_t columns) {
            return example_pruned(rows, columns, layer, at::kBFloat16);
          });
  export_model(inputs(), ExportFormat::dense, folder_ / "dense");
  const Checkpoint dense(folder_ / "dense");
  const std::string name = layer_prefix(1) + "mlp.up_proj.weight";
  EXPECT_EQ(tensor_hash(dense.read(name, dense.entry(name).shape)),
            tensor_hash(read_layer(job_.layer(1)).linears.at(name).weight));
  EXPECT_FALSE(Json::parse(dense.config_text()).contains("quantization_config"));
  expect_error(ExitCode::config, "no layer is quantised", [&] {
    export_model(inputs(), ExportFormat::compressed_tensors, folder_ / "packed");
  });
  EXPECT_FALSE(fs::exists(folder_ / "packed"));
}

TEST_F(Export, DtypeOfTheConfigIsThatOfTheWeights) {
  prepare(at::kBFloat16, false, uniform(4, 16, true, at::kFloat));
  export_model(inputs(), ExportFormat::compressed_tensors, folder_ / "packed");
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
    export_model(inputs(), ExportFormat::compressed_tensors, folder_ / "packed");
  });
  export_model(inputs(), ExportFormat::dense, folder_ / "dense");
}

TEST_F(Export, ShardsHoldWhatOneFileHolds) {
  prepare(at::kBFloat16, false, uniform(4, 16, false, at::kBFloat16));
  export_model(inputs(), ExportFormat::compressed_tensors, folder_ / "one");
  export_model(inputs(), ExportFormat::compressed_tensors, folder_ / "many", 20'000);
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
  export_model(inputs(), ExportFormat::dense, folder_ / "dense");
  EXPECT_EQ(read_bytes(folder_ / "dense" / "tokenizer.json"), "{}\n");
  EXPECT_TRUE(fs::exists(folder_ / "dense" / "generation_config.json"));
  EXPECT_FALSE(fs::exists(folder_ / "dense" / "pytorch_model.bin"));
}

TEST_F(Export, NothingIsOverwrittenOrLeftHalf) {
  prepare(at::kBFloat16, false, uniform(4, 16, true, at::kBFloat16));
  const auto run = [&](const fs::path& to) { export_model(inputs(), ExportFormat::dense, to); };
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
               [&] { export_model(other, ExportFormat::dense, folder_ / "out"); });
  for (const auto& entry : fs::directory_iterator(folder_.path()))
    EXPECT_TRUE(entry.path().filename() == "model" || entry.path().filename() == "job" ||
                entry.path().filename() == "there")
        << entry.path();
}

TEST_F(Export, FullDiskLeavesNothing) {
  prepare(at::kBFloat16, false, uniform(4, 16, true, at::kBFloat16));
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{10'000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  expect_error(ExitCode::io, "model.safetensors: write failed",
               [&] { export_model(inputs(), ExportFormat::compressed_tensors, folder_ / "out"); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  for (const auto& entry : fs::directory_iterator(folder_.path()))
    EXPECT_TRUE(entry.path().filename() == "model" || entry.path().filename() == "job")
        << entry.path();
}

TEST(ExportFormat, NamesAreListed) {
  EXPECT_EQ(export_format_of("dense"), ExportFormat::dense);
  EXPECT_EQ(export_format_of("compressed-tensors"), ExportFormat::compressed_tensors);
  expect_error(ExitCode::config, "expected compressed-tensors, gptq, awq or dense",
               [] { export_format_of("gguf"); });
}

}  // namespace
}  // namespace selfcal
