// What is said of model directories that are not as they should be.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.hpp"
#include "stages/model/model.hpp"

namespace selfcal {
namespace {

const fs::path fixtures = fs::path(SELFCAL_TEST_DATA) / "models";

/// A copy of a fixture that a test may spoil.
class BadModel : public testing::Test {
 protected:
  BadModel() {
    fs::remove_all(directory);
    fs::copy(fixtures / "llama3", directory);
  }
  ~BadModel() override { fs::remove_all(directory); }

  void replace_in_config(const std::string& from, const std::string& to) {
    std::string text = read_text(directory / "config.json");
    const auto place = text.find(from);
    ASSERT_NE(place, std::string::npos) << from;
    std::ofstream(directory / "config.json") << text.replace(place, from.size(), to);
  }
  /// Rewrites the weights with some of them changed.
  void rewrite(const std::function<void(NamedTensors&)>& change) {
    const fs::path path = directory / "model.safetensors";
    NamedTensors tensors;
    {
      const TensorFile file(path);
      for (const auto& [name, entry] : file.entries()) tensors[name] = file.read(name);
    }
    change(tensors);
    write_tensor_file(path, tensors);
  }
  /// Opens the model and reads all weights; the error must be of `code` and name all of `words`.
  void expect_error(ExitCode code, const std::vector<std::string>& words,
                    const std::string& dtype = "auto") {
    try {
      const auto model = open_model(directory, dtype, {});
      const Weights weights(*model);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      for (const auto& word : words)
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
  }

  const fs::path directory =
      fs::temp_directory_path() / fmt::format("selfcal-bad-model-{}", ::getpid());
};

TEST_F(BadModel, UnknownArchitectureListsThoseKnown) {
  replace_in_config("LlamaForCausalLM", "BertForMaskedLM");
  expect_error(ExitCode::data,
               {"config.json", "BertForMaskedLM", "LlamaForCausalLM", "PhiForCausalLM"});
}

TEST_F(BadModel, MissingKeyIsNamed) {
  replace_in_config("\"hidden_size\"", "\"hidden_sise\"");
  expect_error(ExitCode::data, {"config.json", "hidden_size"});
}

TEST_F(BadModel, ValueOfAnotherKindIsShown) {
  replace_in_config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": \"two\"");
  expect_error(ExitCode::data, {"config.json", "num_hidden_layers", "\"two\"", "whole number"});
}

TEST_F(BadModel, HeadsThatCannotBeGrouped) {
  replace_in_config("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3");
  expect_error(ExitCode::data, {"config.json", "4 attention heads", "3 key-value heads"});
}

TEST_F(BadModel, UnknownRotaryScalingIsNamed) {
  replace_in_config("\"llama3\"", "\"llama4\"");
  expect_error(ExitCode::data, {"config.json", "llama4", "llama3", "yarn"});
}

TEST_F(BadModel, RotaryScalingWithoutItsFactors) {
  replace_in_config("\"low_freq_factor\": 1.0,", "");
  expect_error(ExitCode::data, {"config.json", "low_freq_factor"});
}

TEST_F(BadModel, AnotherActivation) {
  replace_in_config("\"silu\"", "\"mish\"");
  expect_error(ExitCode::data, {"config.json", "hidden_act", "mish", "silu"});
}

TEST_F(BadModel, AlreadyQuantised) {
  replace_in_config("\"vocab_size\"",
                    "\"quantization_config\": {\"quant_method\": \"gptq\"}, \"vocab_size\"");
  expect_error(ExitCode::data, {"config.json", "quantization_config"});
}

TEST_F(BadModel, WrongShapeNamesTensorAndFile) {
  rewrite([](NamedTensors& t) { t["model.layers.1.mlp.up_proj.weight"] = at::ones({80, 40}); });
  expect_error(ExitCode::data,
               {"model.safetensors", "model.layers.1.mlp.up_proj.weight", "[80, 40]", "[80, 48]"});
}

TEST_F(BadModel, MissingTensorIsNamed) {
  rewrite([](NamedTensors& t) { t.erase("model.layers.0.self_attn.k_proj.weight"); });
  expect_error(ExitCode::data, {"model.layers.0.self_attn.k_proj.weight"});
}

TEST_F(BadModel, NotANumberIsFound) {
  rewrite([](NamedTensors& t) { t["model.layers.1.self_attn.o_proj.weight"][3][5] = NAN; });
  expect_error(ExitCode::data,
               {"model.safetensors", "model.layers.1.self_attn.o_proj.weight", "NaN"});
}

TEST_F(BadModel, InfinityInTheHeadIsFound) {
  rewrite([](NamedTensors& t) { t["lm_head.weight"][3][5] = -INFINITY; });
  expect_error(ExitCode::data, {"model.safetensors", "lm_head.weight"});
}

TEST_F(BadModel, IntegerWeightsAreRefused) {
  rewrite([](NamedTensors& t) { t["model.norm.weight"] = at::ones({48}, at::kInt); });
  expect_error(ExitCode::data, {"model.safetensors", "model.norm.weight", "I32", "BF16"});
}

TEST_F(BadModel, BiasThatTheConfigDoesNotDeclare) {
  rewrite([](NamedTensors& t) { t["model.layers.0.self_attn.q_proj.bias"] = at::ones({48}); });
  expect_error(ExitCode::data, {"model.safetensors", "model.layers.0.self_attn.q_proj.bias"});
}

TEST_F(BadModel, LayerBeyondTheLast) {
  rewrite([](NamedTensors& t) { t["model.layers.2.mlp.up_proj.weight"] = at::ones({80, 48}); });
  expect_error(ExitCode::data, {"model.safetensors", "model.layers.2.mlp.up_proj.weight"});
}

TEST_F(BadModel, TensorOutsideTheBlocksWithoutAPlace) {
  rewrite([](NamedTensors& t) { t["model.embed_positions.weight"] = at::ones({80, 48}); });
  expect_error(ExitCode::data, {"model.safetensors", "model.embed_positions.weight"});
}

TEST_F(BadModel, BuffersOfOldFilesAreLetBe) {
  rewrite(
      [](NamedTensors& t) { t["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::ones({6}); });
  EXPECT_NO_THROW(open_model(directory, "auto", {}));
}

TEST_F(BadModel, UnknownComputeTypeIsAConfigError) {
  expect_error(ExitCode::config, {"int8", "bfloat16"}, "int8");
  expect_error(ExitCode::config, {"float16", "float32"}, "float16");
}

TEST_F(BadModel, TokensOutsideTheVocabulary) {
  const auto model = open_model(directory, "auto", {});
  const auto outer = model->read_outer();
  EXPECT_THROW(model->embed(at::full({1, 2}, 160, at::kLong), outer), Error);
  EXPECT_THROW(model->embed(at::full({1, 2}, -1, at::kInt), outer), Error);
}

}  // namespace
}  // namespace selfcal
