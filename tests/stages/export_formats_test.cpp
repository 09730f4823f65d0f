// The gptq and awq formats, read back by independent readers written from their definitions.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "export_support.hpp"
#include "stages/export/compressed_tensors.hpp"
#include "storage/module_name.hpp"
#include "storage/tensor_hash.hpp"

namespace selfcal {
namespace {

using export_example::Compress;
using Json = nlohmann::json;
using ExportFormats = ExportFixture;

/// Reads the gptq format from its definition: AutoGPTQ, qlinear_cuda_old (version 1, whose stored
/// zeros are `added` = 1 too small); GPTQModel, checkpoint format gptq_v2 (as they are).
at::Tensor unpack_gptq(const Checkpoint& exported, const std::string& module, int bits, int added) {
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
      packed_values(read("qzeros"), rows, bits) + offset + added;  // [groups, rows]
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
Compress suited(int bits, int64_t group_size, bool symmetric, bool by_index = false,
                int64_t lowest_zero = 1) {
  return [=](int64_t layer, const std::string& name, int64_t rows, int64_t columns) {
    if (layer == 1 && name == "self_attn.o_proj") return CompressedLinear();
    CompressedLinear linear =
        example_quantised(rows, columns, bits, group_size < 0 ? columns : group_size, symmetric,
                          layer, at::kBFloat16);
    linear.zero = linear.zero.clamp_min(lowest_zero);
    if (!symmetric && lowest_zero == 0) linear.zero.select(0, 0).fill_(0);
    if (by_index)
      linear.g_idx = at::arange(columns, at::kInt).remainder(columns / group_size).to(at::kInt);
    linear.weight = dequantise(linear, columns, at::kBFloat16, "example");
    return linear;
  };
}

TEST_F(ExportFormats, GptqFormatHoldsTheSameWeights) {
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
    export_alone({dense, job, export_example::layers, export_example::job_id}, ExportFormat::gptq,
                 out);
    const Checkpoint exported(out);
    const Json config = Json::parse(exported.config_text())["quantization_config"];
    EXPECT_EQ(config["quant_method"], "gptq");
    EXPECT_EQ(config["checkpoint_format"], "gptq");
    EXPECT_EQ(config["bits"], form.bits);
    EXPECT_EQ(config["group_size"], form.group_size);
    EXPECT_EQ(config["desc_act"], form.by_index);
    EXPECT_EQ(config["dynamic"],
              Json::parse(R"({"-:^model\\.layers\\.1\\.self_attn\\.o_proj$": {}})"));
    for (int64_t layer = 0; layer < export_example::layers; ++layer)
      for (const auto& [name, linear] : read_layer(job.layer(layer)).linears) {
        const at::Tensor weight = unpack_gptq(exported, module_of(name), form.bits, 1);
        EXPECT_EQ(tensor_hash(weight.to(at::kBFloat16).contiguous()), tensor_hash(linear.weight))
            << name;
      }
  }
}

TEST_F(ExportFormats, GptqVersion2HoldsZerosOf0) {
  int number = 0;
  for (const int bits : {2, 4, 8}) {
    for (const bool by_index : {false, true}) {
      const JobDirectory job(folder_ / fmt::format("job{}", ++number));
      const fs::path model = folder_ / fmt::format("model{}", number),
                     out = folder_ / fmt::format("gptq{}", number);
      export_example::write(model, job, at::kBFloat16, false,
                            suited(bits, 16, false, by_index, /*lowest_zero=*/0));
      const Checkpoint dense(model);
      export_alone({dense, job, export_example::layers, export_example::job_id},
                   ExportFormat::gptq_v2, out);
      const Checkpoint exported(out);
      const Json config = Json::parse(exported.config_text())["quantization_config"];
      EXPECT_EQ(config["quant_method"], "gptq");
      EXPECT_EQ(config["checkpoint_format"], "gptq_v2");
      EXPECT_EQ(config["desc_act"], by_index);
      for (int64_t layer = 0; layer < export_example::layers; ++layer)
        for (const auto& [name, linear] : read_layer(job.layer(layer)).linears) {
          if (!linear.codes.defined()) continue;
          EXPECT_TRUE(linear.zero.eq(0).any().item<bool>());
          const at::Tensor weight = unpack_gptq(exported, module_of(name), bits, 0);
          EXPECT_EQ(tensor_hash(weight.to(at::kBFloat16).contiguous()), tensor_hash(linear.weight))
              << name;
        }
    }
  }
}

/// 3 bits fill words of 32 bits where rows and columns are multiples of 32, as those of attention
/// are here; one code in ten lies across two words.
TEST_F(ExportFormats, GptqFormatsHold3Bits) {
  int number = 0;
  for (const bool symmetric : {true, false})
    for (const bool by_index : {false, true})
      for (const ExportFormat format : {ExportFormat::gptq, ExportFormat::gptq_v2}) {
        const int64_t lowest_zero = format == ExportFormat::gptq ? 1 : 0;
        const Compress of_all = suited(3, 16, symmetric, by_index, lowest_zero);
        const JobDirectory job(folder_ / fmt::format("job{}", ++number));
        const fs::path model = folder_ / fmt::format("model{}", number),
                       out = folder_ / fmt::format("gptq{}", number);
        export_example::write(
            model, job, at::kBFloat16, false,
            [&](int64_t layer, const std::string& name, int64_t rows, int64_t columns) {
              return name.starts_with("mlp") ? CompressedLinear()
                                             : of_all(layer, name, rows, columns);
            });
        const Checkpoint dense(model);
        export_alone({dense, job, export_example::layers, export_example::job_id}, format, out);
        const Checkpoint exported(out);
        EXPECT_EQ(Json::parse(exported.config_text())["quantization_config"]["bits"], 3);
        int compared = 0;
        for (int64_t layer = 0; layer < export_example::layers; ++layer)
          for (const auto& [name, linear] : read_layer(job.layer(layer)).linears) {
            const at::Tensor weight = unpack_gptq(exported, module_of(name), 3, int(lowest_zero));
            EXPECT_EQ(tensor_hash(weight.to(at::kBFloat16).contiguous()),
                      tensor_hash(linear.weight))
                << name;
            ++compared;
          }
        EXPECT_EQ(compared, 4 * export_example::layers - 1);
      }
}

TEST_F(ExportFormats, GptqFormatNamesOtherSchemes) {
  prepare(at::kBFloat16, false,
          [](int64_t layer, const std::string& name, int64_t rows, int64_t columns) {
            return suited(name == "mlp.up_proj" ? 8 : 4, 16, true)(layer, name, rows, columns);
          });
  export_alone(inputs(), ExportFormat::gptq, folder_ / "gptq");
  const Json config =
      Json::parse(Checkpoint(folder_ / "gptq").config_text())["quantization_config"];
  EXPECT_EQ(config["bits"], 4);
  EXPECT_EQ(config["dynamic"]["+:^model\\.layers\\.0\\.mlp\\.up_proj$"]["bits"], 8);
}

TEST_F(ExportFormats, AwqFormatHoldsTheSameWeights) {
  struct Form {
    int64_t group_size;
    bool symmetric;
    int64_t lowest_zero;
  };
  int number = 0;
  for (const Form& form :
       {Form{16, false, 1}, Form{16, false, 0}, Form{8, true, 1}, Form{-1, false, 0}}) {
    const JobDirectory job(folder_ / fmt::format("job{}", ++number));
    const fs::path model = folder_ / fmt::format("model{}", number),
                   out = folder_ / fmt::format("awq{}", number);
    export_example::write(
        model, job, at::kBFloat16, false,
        suited(4, form.group_size, form.symmetric, /*by_index=*/false, form.lowest_zero));
    const Checkpoint dense(model);
    export_alone({dense, job, export_example::layers, export_example::job_id}, ExportFormat::awq,
                 out);
    const Checkpoint exported(out);
    const Json config = Json::parse(exported.config_text())["quantization_config"];
    EXPECT_EQ(config["version"], "gemm");
    EXPECT_EQ(config["group_size"], form.group_size);
    EXPECT_EQ(config["modules_to_not_convert"], Json::array({"model.layers.1.self_attn.o_proj"}));
    EXPECT_TRUE(config["dynamic"].contains("-:^model\\.layers\\.1\\.self_attn\\.o_proj$"));
    for (int64_t layer = 0; layer < export_example::layers; ++layer)
      for (const auto& [name, linear] : read_layer(job.layer(layer)).linears) {
        const at::Tensor weight = unpack_awq(exported, module_of(name));
        EXPECT_EQ(tensor_hash(weight.to(at::kBFloat16).contiguous()), tensor_hash(linear.weight))
            << name;
      }
  }
}

TEST_F(ExportFormats, WhatAFormatCannotHoldIsRefused) {
  int number = 0;
  const auto refused = [&](ExportFormat format, const Compress& compress, const std::string& text) {
    const JobDirectory job(folder_ / fmt::format("job{}", ++number));
    export_example::write(folder_ / fmt::format("model{}", number), job, at::kBFloat16, false,
                          compress);
    const Checkpoint dense(folder_ / fmt::format("model{}", number));
    expect_error(ExitCode::config, text, [&] {
      export_alone({dense, job, export_example::layers, export_example::job_id}, format,
                   folder_ / "out");
    });
    EXPECT_FALSE(fs::exists(folder_ / "out"));
  };
  refused(ExportFormat::awq, suited(8, 16, true), "8 bits, the awq format has 4");
  for (const ExportFormat format : {ExportFormat::awq, ExportFormat::compressed_tensors})
    refused(format, suited(4, 16, true, true), "export gptq, gptq_v2 or dense");
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

}  // namespace
}  // namespace selfcal
