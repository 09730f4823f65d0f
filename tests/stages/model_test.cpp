// Models against transformers' logits (tests/data/models, written by tools/make_model_fixtures),
// and cached decoding against the forward of whole sequences.
#include "stages/model/model.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.hpp"
#include "stages/model/config.hpp"
#include "stages/model/rotary.hpp"

namespace selfcal {
namespace {

const fs::path data = fs::path(SELFCAL_TEST_DATA) / "models";

struct Weights {
  explicit Weights(const Model& model) : outer(model.read_outer()) {
    for (int64_t layer = 0; layer < model.shape().layers; ++layer)
      blocks.push_back(model.read_block(layer));
  }
  OuterWeights outer;
  std::vector<BlockWeights> blocks;
};

/// tokens [rows, length] -> logits float32 [rows, length, vocabulary], whole sequences at once.
at::Tensor prefill(const Model& model, const Weights& weights, const at::Tensor& tokens) {
  at::Tensor hidden = model.embed(tokens, weights.outer);
  for (int64_t layer = 0; layer < model.shape().layers; ++layer)
    hidden = forward(model.block(layer), hidden, weights.blocks[static_cast<size_t>(layer)]);
  return model.logits(hidden.view({-1, model.shape().hidden}), weights.outer)
      .view({tokens.size(0), tokens.size(1), model.shape().vocabulary});
}

/// Decodes a token at a time for rows of tokens, with one cache a block.
class Decoder {
 public:
  Decoder(const Model& model, const Weights& weights, int64_t rows, int64_t capacity)
      : model_(model), weights_(weights), positions_(at::zeros({rows}, at::kLong)) {
    for (int64_t layer = 0; layer < model.shape().layers; ++layer)
      caches_.push_back(model.make_cache(rows, capacity));
  }
  /// tokens [rows] at the next position -> logits [rows, vocabulary].
  at::Tensor step(const at::Tensor& tokens) {
    at::Tensor hidden = model_.embed(tokens, weights_.outer, positions_);
    for (size_t layer = 0; layer < caches_.size(); ++layer)
      hidden = model_.block(static_cast<int64_t>(layer))
                   .step(hidden, positions_, caches_[layer], weights_.blocks[layer]);
    positions_ += 1;
    return model_.logits(hidden, weights_.outer);
  }

 private:
  const Model& model_;
  const Weights& weights_;
  std::vector<KeyValueCache> caches_;
  at::Tensor positions_;
};

/// Largest difference in units of the reference's standard deviation.
double distance(const at::Tensor& found, const at::Tensor& expected) {
  return ((found - expected).abs().max() / expected.std()).item<double>();
}

class Fixture : public testing::TestWithParam<const char*> {
 protected:
  static void SetUpTestSuite() { kernels::use_one_library_thread(); }

  std::unique_ptr<Model> open(const std::string& dtype, kernels::Device device = {}) {
    return open_model(data / GetParam(), dtype, {&pool, device});
  }

  ThreadPool pool{2, kernels::use_one_library_thread};
  TensorFile reference{data / GetParam() / "reference.safetensors"};
};

TEST_P(Fixture, LogitsEqualTransformers) {
  const auto model = open("float32");
  EXPECT_LT(distance(prefill(*model, Weights(*model), reference.read("input_ids")),
                     reference.read("logits")),
            1e-4);
}

TEST_P(Fixture, BfloatLogitsAreClose) {
  const auto model = open("bfloat16");
  const Weights weights(*model);
  EXPECT_EQ(weights.outer.begin()->second.scalar_type(), at::kBFloat16);
  const auto logits = prefill(*model, weights, reference.read("input_ids")),
             expected = reference.read("logits");
  EXPECT_LT(((logits - expected).pow(2).mean().sqrt() / expected.std()).item<double>(), 0.03);
}

TEST_P(Fixture, DecodingEqualsPrefill) {
  for (const char* dtype : {"float32", "bfloat16"}) {
    const auto model = open(dtype);
    const Weights weights(*model);
    const auto tokens = reference.read("input_ids");
    Decoder decoder(*model, weights, tokens.size(0), tokens.size(1));
    std::vector<at::Tensor> steps;
    for (int64_t t = 0; t < tokens.size(1); ++t)
      steps.push_back(decoder.step(tokens.select(1, t).contiguous()));
    const auto expected = prefill(*model, weights, tokens);
    EXPECT_LT(distance(at::stack(steps, 1), expected),
              model->shape().compute_dtype == at::kFloat ? 1e-5 : 0.15);
  }
}

TEST_P(Fixture, GreedyContinuationEqualsTransformers) {
  const auto model = open("float32");
  const Weights weights(*model);
  const auto tokens = reference.read("input_ids"), expected = reference.read("greedy");
  Decoder decoder(*model, weights, tokens.size(0), tokens.size(1) + expected.size(1));
  at::Tensor logits;
  for (int64_t t = 0; t < tokens.size(1); ++t)
    logits = decoder.step(tokens.select(1, t).contiguous());
  std::vector<at::Tensor> continuation;
  for (int64_t t = 0; t < expected.size(1); ++t) {
    continuation.push_back(logits.argmax(-1));
    logits = decoder.step(continuation.back());
  }
  EXPECT_TRUE(at::equal(at::stack(continuation, 1), expected));
}

// What a GPU computes with, on host memory: prefill and cached decoding.
TEST_P(Fixture, LibraryOperationsComeToTheSameLogits) {
  const auto model = open("float32", {at::kCPU, &kernels::library_operations});
  const Weights weights(*model);
  const auto tokens = reference.read("input_ids"), expected = reference.read("logits");
  EXPECT_LT(distance(prefill(*model, weights, tokens), expected), 1e-4);
  Decoder decoder(*model, weights, tokens.size(0), tokens.size(1));
  std::vector<at::Tensor> steps;
  for (int64_t t = 0; t < tokens.size(1); ++t)
    steps.push_back(decoder.step(tokens.select(1, t).contiguous()));
  EXPECT_LT(distance(at::stack(steps, 1), expected), 1e-4);

  const auto narrow = open("bfloat16", {at::kCPU, &kernels::library_operations});
  const auto logits = prefill(*narrow, Weights(*narrow), tokens);
  EXPECT_LT(((logits - expected).pow(2).mean().sqrt() / expected.std()).item<double>(), 0.03);
}

TEST_P(Fixture, BitsDoNotDependOnThreads) {
  for (const char* dtype : {"float32", "bfloat16"}) {
    at::Tensor first;
    for (const int threads : {1, 2, 4}) {
      ThreadPool threads_of_test(threads, kernels::use_one_library_thread);
      const auto model = open_model(data / GetParam(), dtype, {&threads_of_test});
      const auto logits = prefill(*model, Weights(*model), reference.read("input_ids"));
      if (!first.defined()) first = logits;
      EXPECT_TRUE(at::equal(logits, first)) << threads << " threads, " << dtype;
    }
  }
}

TEST_P(Fixture, TapsAreThereBeforeTheirStage) {
  const auto model = open("auto");
  const Block& block = model->block(0);
  const Weights weights(*model);
  const auto tokens = reference.read("input_ids");
  State state = block.begin(model->embed(tokens, weights.outer), weights.blocks[0]);
  for (int stage = 0; stage < block.spec().stages; ++stage) {
    for (const auto& tap : block.spec().taps)
      if (tap.stage == stage) {
        ASSERT_TRUE(state.contains(tap.name));
        EXPECT_EQ(state.at(tap.name).sizes(), (at::IntArrayRef{tokens.numel(), tap.columns}));
      }
    for (const auto& linear : block.spec().linears)
      if (linear.stage == stage) {
        EXPECT_TRUE(state.contains(block.spec().taps[static_cast<size_t>(linear.tap)].name));
      }
    state = block.advance(std::move(state), stage, weights.blocks[0]);
  }
  for (const auto& linear : block.spec().linears) {
    EXPECT_EQ(block.spec().taps[static_cast<size_t>(linear.tap)].columns, linear.columns);
    EXPECT_EQ(block.spec().parameters.at(linear.name + ".weight"),
              (std::vector<int64_t>{linear.rows, linear.columns}));
  }
  EXPECT_EQ(state.size(), 1u);
}

/// Divides what a norm or linear layer gives by `scales`.
void divide_output(BlockWeights& weights, const ScalePair& pair, const at::Tensor& scales) {
  at::Tensor& weight = weights.at(pair.producer + ".weight");
  weight = weight.dim() == 1 ? (weight + pair.norm_offset) / scales - pair.norm_offset
                             : weight / scales.unsqueeze(1);
  const auto bias = weights.find(pair.producer + ".bias");
  if (bias != weights.end()) bias->second = bias->second / scales;
}

TEST_P(Fixture, ScalesMoveAlongThePairs) {
  const auto model = open("float32");
  const Weights weights(*model);
  const Block& block = model->block(0);
  const at::Tensor hidden = at::randn({2, 20, model->shape().hidden});
  const at::Tensor expected = forward(block, hidden, weights.blocks[0]);
  EXPECT_FALSE(block.spec().scale_pairs.empty());
  for (const auto& pair : block.spec().scale_pairs) {
    BlockWeights scaled = weights.blocks[0];
    const at::Tensor scales =
        at::rand({scaled.at(pair.consumers.front() + ".weight").size(1)}) + 0.5;
    divide_output(scaled, pair, scales);
    for (const auto& consumer : pair.consumers) {
      at::Tensor& weight = scaled.at(consumer + ".weight");
      weight = weight * scales;
    }
    EXPECT_LT(distance(forward(block, hidden, scaled), expected), 1e-4) << pair.producer;
  }
}

/// "norm > q k v" for each pair, names without what is the same in all.
std::vector<std::string> described(const std::vector<ScalePair>& pairs) {
  const auto last = [](const std::string& name) { return name.substr(name.rfind('.') + 1); };
  std::vector<std::string> texts;
  for (const auto& pair : pairs) {
    std::string text = last(pair.producer) + " >";
    for (const auto& consumer : pair.consumers) text += " " + last(consumer);
    texts.push_back(text);
  }
  return texts;
}

/// Where v has fewer heads than o reads, or is fused with q and k, and where a GELU lies between
/// fc1 and fc2, no factor passes.
TEST_P(Fixture, ScalesMoveAlongThePairsOfItsFamily) {
  using Pairs = std::vector<std::string>;
  const Pairs llama{"input_layernorm > q_proj k_proj v_proj",
                    "post_attention_layernorm > gate_proj up_proj", "up_proj > down_proj"};
  const Pairs gemma{llama[0], "pre_feedforward_layernorm > gate_proj up_proj", llama[2]};
  const Pairs llama_of_equal_heads{llama[0], "v_proj > o_proj", llama[1], llama[2]};
  const Pairs opt{"self_attn_layer_norm > q_proj k_proj v_proj", "v_proj > out_proj",
                  "final_layer_norm > fc1", "fc1 > fc2"};
  const Pairs neox{"input_layernorm > query_key_value", "post_attention_layernorm > dense_h_to_4h"};
  const std::map<std::string, Pairs> expected{
      {"mistral", llama_of_equal_heads},
      {"longrope", llama_of_equal_heads},
      {"old-keys", llama_of_equal_heads},
      {"gemma2", gemma},
      {"gemma3", {gemma[0], llama_of_equal_heads[1], gemma[1], gemma[2]}},
      {"gemma3-old-keys", gemma},
      {"phi", {"input_layernorm > q_proj k_proj v_proj fc1", "v_proj > dense"}},
      {"phi-norms", {"input_layernorm > q_proj k_proj v_proj fc1"}},
      {"opt", opt},
      {"opt-untied", opt},
      {"opt-350m", {opt[1]}},
      {"neox", neox},
      {"neox-serial", neox}};
  const auto model = open("float32");
  const auto found = expected.find(GetParam());
  EXPECT_EQ(described(model->block(0).spec().scale_pairs),
            found == expected.end() ? llama : found->second);
}

TEST_P(Fixture, InspectedModulesGiveWhatTheStreamGains) {
  const auto model = open("float32");
  const BlockWeights weights = model->read_block(0);
  const Block& block = model->block(0);
  const BlockSpec& spec = block.spec();
  if (spec.parameters.contains("post_feedforward_layernorm.weight"))
    GTEST_SKIP() << "a norm comes between";
  const at::Tensor hidden = at::randn({2, 20, model->shape().hidden});
  for (const auto& pair : spec.scale_pairs) {
    if (pair.inspected == pair.consumers.front()) continue;  // a linear layer
    const auto consumer = std::ranges::find(spec.linears, pair.consumers.front(), &Linear::name);
    ASSERT_NE(consumer, spec.linears.end());
    const int first = spec.taps[static_cast<size_t>(consumer->tap)].stage;
    State state = block.begin(hidden, weights);
    for (int stage = 0; stage < first; ++stage)
      state = block.advance(std::move(state), stage, weights);
    const at::Tensor given = block.output_of(pair.inspected, state, weights),
                     before = state.at("hidden");
    const int end = pair.inspected == "block" ? spec.stages : first + 2;
    for (int stage = first; stage < end; ++stage)
      state = block.advance(std::move(state), stage, weights);
    const at::Tensor gain = state.at("hidden") - before;
    EXPECT_LT(distance(given, gain.view_as(given)), 1e-4) << pair.inspected;
  }
  State state = block.begin(hidden, weights);
  EXPECT_THROW(block.output_of("elsewhere", state, weights), Error);
}

INSTANTIATE_TEST_SUITE_P(Models, Fixture,
                         testing::Values("llama3", "tied-bf16", "wide-heads-f16", "old-keys",
                                         "yarn", "longrope", "mistral", "gemma", "gemma2", "gemma3",
                                         "gemma3-old-keys", "phi", "phi-norms", "opt", "opt-350m",
                                         "opt-untied", "qwen2", "qwen3", "neox", "neox-serial"),
                         [](const auto& name) {
                           std::string text = name.param;
                           std::replace(text.begin(), text.end(), '-', '_');
                           return text;
                         });

TEST(ModelShape, IsReadFromTheConfig) {
  const auto model = open_model(data / "tied-bf16", "auto", {});
  const ModelShape& shape = model->shape();
  EXPECT_EQ(shape.architecture, "LlamaForCausalLM");
  EXPECT_EQ(shape.layers, 2);
  EXPECT_EQ(shape.head_dim, 12);
  EXPECT_EQ(shape.bos_token, 1);
  EXPECT_EQ(shape.eos_tokens, (std::vector<int64_t>{2, 5}));
  EXPECT_TRUE(shape.tied_embeddings);
  EXPECT_EQ(shape.compute_dtype, at::kBFloat16);
  EXPECT_EQ(open_model(data / "wide-heads-f16", "auto", {})->shape().compute_dtype, at::kFloat);
  EXPECT_EQ(open_model(data / "mistral", "auto", {})->shape().maximum_length, 256);
  EXPECT_EQ(open_model(data / "longrope", "auto", {})->shape().maximum_length, 64)
      << "the short factors hold up to the original length";
  EXPECT_EQ(open_model(data / "gemma", "auto", {})->shape().head_dim, 16);
  EXPECT_EQ(model->block_prefix(1), "model.layers.1.");
  EXPECT_EQ(model->read_outer().size(), 2u);
}

TEST(Rotary, AnglesDoNotDependOnHowTheTableGrew) {
  const ModelConfig config("config.json", R"({"rope_theta": 10000})");
  const Rotary at_once(rotary_angles(config, 16)), grown(rotary_angles(config, 16));
  const auto x = at::randn({3, 2, 16}), positions = at::tensor(std::vector<int64_t>{0, 70, 5});
  auto a = x.clone(), b = x.clone(), other = x.clone();
  at_once.apply({}, a, positions, 100);
  grown.apply({}, other, at::zeros({3}, at::kLong), 1);
  grown.apply({}, b, positions, 71);
  EXPECT_TRUE(at::equal(a, b));
}

}  // namespace
}  // namespace selfcal
