#include "pipeline/config_table.hpp"

#include <regex>

#include "base/error.hpp"
#include "pipeline/config_values.hpp"

namespace selfcal {
namespace {

using namespace values;

constexpr int64_t unlimited = std::numeric_limits<int64_t>::max();

const Words<LayoutSettings::Mode> modes{{{"auto", LayoutSettings::Mode::automatic},
                                         {"split", LayoutSettings::Mode::split},
                                         {"shared", LayoutSettings::Mode::shared}}};
const Words<DeviceChoice> devices{
    {{"auto", DeviceChoice::automatic}, {"cpu", DeviceChoice::cpu}, {"cuda", DeviceChoice::cuda}}};
const Words<CalibrationSource> sources{{{"self", CalibrationSource::self},
                                        {"tokens", CalibrationSource::tokens},
                                        {"vocabulary", CalibrationSource::vocabulary}}};
const Words<EndOfText> ends{
    {{"pack", EndOfText::pack}, {"ban", EndOfText::ban}, {"redraw", EndOfText::redraw}}};
const Words<PromptKind> prompts{{{"bos", PromptKind::bos}, {"random", PromptKind::random}},
                                {"tokens", "file"}};
const Words<MethodName> methods{{method_names.begin(), method_names.end()}};
const Words<ActOrder> orders{{{"auto", ActOrder::automatic},
                              {"none", ActOrder::none},
                              {"static", ActOrder::static_order},
                              {"dynamic", ActOrder::dynamic_order}}};
const Words<at::ScalarType> scale_dtypes{{{"auto", at::ScalarType::Undefined},
                                          {"float32", at::kFloat},
                                          {"bfloat16", at::kBFloat16},
                                          {"float16", at::kHalf}}};
const Words<AutoFlag> auto_flags{
    {{"auto", AutoFlag::automatic}, {"true", AutoFlag::yes}, {"false", AutoFlag::no}}};
const Words<GroupParameters> group_parameters{
    {{"published", GroupParameters::published}, {"current", GroupParameters::current}}};
const Words<ErrorMeasure> error_measures{{{"auto", ErrorMeasure::automatic},
                                          {"hessian", ErrorMeasure::hessian},
                                          {"norms", ErrorMeasure::norms}}};
const Words<ScaleLoss> scale_losses{{{"linear", ScaleLoss::linear}, {"module", ScaleLoss::module}}};
const Words<AutoFlag> calibration_losses{
    {{"auto", AutoFlag::automatic}, {"false", AutoFlag::no}, {"true", AutoFlag::yes}}};
const Words<Propagation> propagations{
    {{"sequential", Propagation::sequential}, {"dense", Propagation::dense}}};
const Words<bool> layer_sparsities{{{"uniform", false}, {"owl", true}}};
const Words<bool> sequential_kinds{{{"true_sequential", true}, {"per_block", false}}};
const Words<std::string> dtypes{
    {{"auto", "auto"}, {"float32", "float32"}, {"bfloat16", "bfloat16"}, {"float16", "float16"}}};
const Words<std::string> formats{{{"compressed-tensors", "compressed-tensors"},
                                  {"gptq", "gptq"},
                                  {"gptq_v2", "gptq_v2"},
                                  {"awq", "awq"},
                                  {"dense", "dense"}}};

Key<RunConfig> path_key(std::string path, auto field, std::string help) {
  return {std::move(path),
          "path",
          std::move(help),
          [=](RunConfig& config, const YAML::Node& node, const MapReader&) {
            field(config) = text(node);
          },
          [=](const RunConfig& config) {
            const std::string value = field(config);
            return value.empty() ? value : quoted(value);
          },
          true};
}

Key<RunConfig> optional_path_key(std::string path, auto field, std::string help) {
  return {std::move(path), "path or null", std::move(help),
          [=](RunConfig& config, const YAML::Node& node, const MapReader&) {
            field(config) = node.IsNull() ? "" : text(node);
          },
          [=](const RunConfig& config) {
            return field(config).empty() ? "null" : quoted(field(config));
          }};
}

std::string expression(const YAML::Node& node) {
  const std::string value = text(node);
  try {
    std::regex{value};
  } catch (const std::regex_error&) {
    throw BadValue("found " + quoted(value));
  }
  return value;
}

std::string job_name(const YAML::Node& node) {
  const std::string value = text(node);
  if (value.size() > 100 || !std::regex_match(value, std::regex("[A-Za-z0-9_][A-Za-z0-9._-]*")))
    throw BadValue("found " + describe(node));
  return value;
}

/// A list of texts, each read by `read_one`.
Key<RunConfig> list_key(std::string path, std::string expected, auto field, auto read_one,
                        std::string help) {
  return {std::move(path), std::move(expected), std::move(help),
          [=](RunConfig& config, const YAML::Node& node, const MapReader&) {
            if (!node.IsSequence()) throw BadValue("found " + describe(node));
            std::vector<std::string> list;
            for (const auto& entry : node) list.push_back(read_one(entry));
            field(config) = std::move(list);
          },
          [=](const RunConfig& config) {
            std::string joined;
            for (const auto& entry : field(config))
              joined += (joined.empty() ? "" : ", ") + quoted(entry);
            return "[" + joined + "]";
          }};
}

void read_overrides(RunConfig& config, const YAML::Node& node, const MapReader& reader) {
  if (!node.IsSequence()) throw BadValue("found " + describe(node));
  std::vector<Override> list;
  for (const auto& item : node) {
    const auto prefix = fmt::format("overrides[{}].", list.size());
    auto& entry = list.emplace_back();
    if (!item.IsMap()) throw BadValue("found " + describe(item) + " in the list");
    reader.within(prefix).read(entry, item, override_keys());
    if (const auto* key = missing_key(entry, override_keys()))
      fail(ExitCode::config, "{}: {}{}: found nothing, expected {}", reader.where(item), prefix,
           key->path, key->expected);
    if (!entry.bits && !entry.group_size && !entry.method && !entry.sparsity && !entry.pattern &&
        !entry.skip)
      fail(ExitCode::config,
           "{}: {}match: found no setting beside it, expected bits, group_size, method, sparsity, "
           "pattern or skip",
           reader.where(item), prefix);
  }
  config.overrides = std::move(list);
}

std::string print_overrides(const RunConfig& config) {
  std::string list;
  for (const auto& entry : config.overrides) {
    std::string map;
    for (const auto& key : override_keys())
      if (const auto value = key.print(entry); !value.empty())
        map += (map.empty() ? "" : ", ") + key.path + ": " + value;
    list += (list.empty() ? "{" : ", {") + map + "}";
  }
  return "[" + list + "]";
}

Key<RunConfig> memory_key() {
  return {"layout.memory", "auto or bytes (as in 900MiB or 4GB)",
          "Memory a rank may use, of its GPU where it computes on one; the plan refuses a layout "
          "that needs more.",
          [](RunConfig& config, const YAML::Node& node, const MapReader&) {
            config.layout.memory = bytes(node);
          },
          [](const RunConfig& config) { return bytes_text(config.layout.memory); }};
}

const IntegerRule bits_rule{2, 8, true, unquantised_bits};
constexpr NumberRule share_rule{0.0, 0.99};
std::string bits_text(int bits) { return bits == 0 ? "auto" : std::to_string(bits); }

const std::string pattern_expected = "none or zeros:of (as in 2:4, at most 64 columns)";

lanes::Pattern read_pattern(const YAML::Node& node) {
  const std::string word = text(node);  // may be quoted: some readers take 2:4 for a time
  if (word == "none") return {};
  const auto pattern = parse_pattern(word);
  if (!pattern) throw BadValue("found " + describe(node));
  return *pattern;
}

std::string print_pattern(const lanes::Pattern& pattern) {
  return pattern.of == 0 ? "none" : fmt::format("{}:{}", pattern.zeros, pattern.of);
}
const IntegerRule group_rule{1, 1 << 20, false, -1};

}  // namespace

// clang-format off
#define FIELD(member) [](auto& c) -> auto& { return c.member; }

const std::vector<Key<Override>>& override_keys() {
  static const std::vector<Key<Override>> keys{
      {"match", "regular expression", "Searched in the layer's name, as in `mlp\\.down_proj$`; the first entry that matches counts.",
       [](Override& entry, const YAML::Node& node, const MapReader&) { entry.match = expression(node); },
       [](const Override& entry) { return entry.match.empty() ? "" : quoted(entry.match); }, true},
      {"bits", expectation(bits_rule), "Bits of a weight in these layers.",
       [](Override& entry, const YAML::Node& node, const MapReader&) { entry.bits = static_cast<int>(integer(node, bits_rule)); },
       [](const Override& entry) { return entry.bits ? bits_text(*entry.bits) : ""; }},
      {"group_size", expectation(group_rule), "Group size in these layers.",
       [](Override& entry, const YAML::Node& node, const MapReader&) { entry.group_size = integer(node, group_rule); },
       [](const Override& entry) { return entry.group_size ? std::to_string(*entry.group_size) : ""; }},
      {"method", methods.expectation(), "Method of these layers.",
       [](Override& entry, const YAML::Node& node, const MapReader&) { entry.method = methods.at(text(node)); },
       [](const Override& entry) { return entry.method ? to_text(*entry.method) : ""; }},
      {"sparsity", expectation(share_rule), "Share of zeros in these layers.",
       [](Override& entry, const YAML::Node& node, const MapReader&) { entry.sparsity = number(node, share_rule); },
       [](const Override& entry) { return entry.sparsity ? number_text(*entry.sparsity) : ""; }},
      {"pattern", pattern_expected, "n:m pattern of these layers.",
       [](Override& entry, const YAML::Node& node, const MapReader&) { entry.pattern = read_pattern(node); },
       [](const Override& entry) { return entry.pattern ? print_pattern(*entry.pattern) : ""; }},
      flag_key<Override>("skip", FIELD(skip), "Leave these layers as they are."),
  };
  return keys;
}

const std::vector<Key<RunConfig>>& config_keys() {
  using C = RunConfig;
  static const std::vector<Key<C>> keys{
      path_key("model.path", FIELD(model), "Hugging Face directory of the model (config.json and safetensors)."),
      word_key<C>("model.dtype", FIELD(dtype), dtypes, "Type that the model computes in; auto: the one it is stored in (float16 computes in float32 on CPUs)."),
      path_key("output", FIELD(output), "Run directory: calibration, layers, checkpoint, exports, report."),
      {"name", "letters, digits, dot, dash, underscore", "Name of the job inside the run directory.",
       [](C& c, const YAML::Node& node, const MapReader&) { c.name = job_name(node); }, [](const C& c) { return quoted(c.name); }},
      integer_key<C>("seed", FIELD(seed), {0, unlimited}, "Seed of every random number."),
      word_key<C>("device", FIELD(device), devices, "Where forward passes, statistics and the solves of gptq and n:m sparsegpt compute; results depend on it. cuda: a GPU of its own for each rank, else an error; auto: that where every rank has one, else the CPU. Never run on a GPU yet: docs/gpus.md."),
      integer_key<C>("threads", FIELD(threads), {1, 1024, true}, "Threads of a rank; auto: the cores it may use, shared with the ranks of its node."),

      word_key<C>("layout.mode", FIELD(layout.mode), modes, "split: some ranks sample while others compress; shared: all ranks sample, then compress."),
      integer_key<C>("layout.generators.replicas", FIELD(layout.replicas), {1, 1 << 20, true}, "Copies of the model that sample."),
      integer_key<C>("layout.generators.depth", FIELD(layout.depth), {1, 1 << 20, true}, "Ranks that one copy is spread over; auto: the fewest that hold it where the memory is known, else 1."),
      integer_key<C>("layout.compressors.shards", FIELD(layout.shards), {1, 1 << 20, true}, "Runs of consecutive layers, each compressed by a team of its own."),
      integer_key<C>("layout.compressors.team", FIELD(layout.team), {1, 1 << 20, true}, "Ranks that share the work of a shard."),
      memory_key(),
      integer_key<C>("layout.timeout", FIELD(layout.timeout), {1, 1 << 20}, "Seconds of silence after which the watchdog ends a job of several ranks (exit code 74): a rank that is not heard, one that stands still outside a wait, or ranks that all wait for each other. Long work is not silence."),

      word_key<C>("calibration.source", FIELD(calibration.source), sources, "self: text that the model samples; tokens: a file; vocabulary: uniform random ids."),
      optional_path_key("calibration.tokens", FIELD(calibration.tokens_path), "Token file of `source: tokens`: a calibration file, or safetensors with input_ids."),
      integer_key<C>("calibration.sequences", FIELD(calibration.sequences), {1, 1 << 24}, "Sequences of a set."),
      integer_key<C>("calibration.length", FIELD(calibration.length), {2, 1 << 24}, "Tokens of a sequence."),
      {"calibration.sets", "1 (more is not supported yet)", "Disjoint draws in one run.",
       [](C&, const YAML::Node& node, const MapReader&) { integer(node, {1, 1}); }, [](const C&) { return "1"; }},
      integer_key<C>("calibration.set", FIELD(calibration.set), {0, 1 << 30}, "Which of the disjoint draws of a seed."),
      integer_key<C>("calibration.micro_batch", FIELD(calibration.micro_batch), {1, 1024}, "Sequences that are dealt to the ranks together, to be sampled and to be counted; a generator samples several micro-batches side by side. Fixed, since it decides the last bits of the arithmetic."),
      number_key<C>("calibration.temperature.initial", FIELD(calibration.temperature_initial), {0.0, 100.0}, "Sampling temperature of the first token of a document; 0: the most probable token."),
      number_key<C>("calibration.temperature.final", FIELD(calibration.temperature_final), {0.0, 100.0}, "Sampling temperature after `steps` tokens."),
      integer_key<C>("calibration.temperature.steps", FIELD(calibration.temperature_steps), {0, 1 << 24}, "Tokens over which the temperature goes from initial to final."),
      integer_key<C>("calibration.sampling.top_k", FIELD(calibration.top_k), {0, 1 << 24}, "Sample among the k most probable tokens; 0: all."),
      number_key<C>("calibration.sampling.top_p", FIELD(calibration.top_p), {0.0, 1.0, true}, "Sample among the most probable tokens that together have this probability."),
      word_key<C>("calibration.end_of_text", FIELD(calibration.end_of_text), ends, "pack: a new document starts in the same sequence; ban: the token is never drawn; redraw: a document that ends early is drawn again."),
      word_key<C>("calibration.prompt.kind", FIELD(calibration.prompt), prompts, "What a document starts from: the beginning-of-text token, or a random first token."),

      word_key<C>("method.name", FIELD(method.name), methods, "gptq: error-compensating quantisation; sparsegpt: error-compensating pruning, and quantisation in the same pass where bits are set; awq: inputs that matter are scaled before rounding to nearest; wanda, magnitude: pruning by |weight| times the norm of its input, or alone, then rounding where bits are set; nearest: round to nearest, the control."),
      integer_key<C>("method.bits", FIELD(method.bits), bits_rule, "Bits of a weight; 16: only pruned; auto: 4, or 16 where the method prunes."),
      integer_key<C>("method.group_size", FIELD(method.group_size), group_rule, "Columns that share a scale; -1: a whole row. Must divide the inputs of every layer."),
      flag_key<C>("method.symmetric", FIELD(method.symmetric), "Zero point fixed at the middle code."),
      word_key<C>("method.act_order", FIELD(method.act_order), orders, "Order of the columns: as stored, or by falling diagonal of the Hessian with static or dynamic groups; auto: static for gptq and for sparsegpt of an n:m pattern, with static groups if they quantise, else none. sparsegpt may take static too (an n:m pattern moves its runs of columns as a whole), and dynamic where bits are set; wanda and magnitude know no order."),
      word_key<C>("method.static_groups", FIELD(method.static_groups), auto_flags, "Scales of all groups are set before the first column; act_order static needs it. auto: true, but false where sparsegpt prunes a share and quantises too, whose kept weights grow beyond a range set before as they make good for pruned ones; of an n:m pattern the scales are those of the weights that pruning alone would leave."),
      word_key<C>("method.mse", FIELD(method.mse), auto_flags, "Search the clipping range that has the least error, among 80. auto: true with at most 4 bits for gptq, and for sparsegpt of an n:m pattern with static_groups."),
      number_key<C>("method.damping", FIELD(method.damping), {0.0, 1.0}, "Fraction of the Hessian's mean diagonal that is added to its diagonal; raised step by step where the factorisation fails."),
      integer_key<C>("method.block_size", FIELD(method.block_size), {1, 1 << 20}, "Columns between lazy updates."),
      word_key<C>("method.scale_dtype", FIELD(method.scale_dtype), scale_dtypes, "Type that scales are rounded to before codes are computed; auto: the one the model is stored in, or computes in where that is shorter."),
      word_key<C>("method.group_params", FIELD(method.group_parameters), group_parameters, "Weights that scales are found from: published (dynamic groups without updates inside the block; before anything is pruned) or current."),
      flag_key<C>("method.duo_scaling", FIELD(method.duo_scaling), "awq: scales come from the sizes of the weights too, not from those of the inputs alone."),
      flag_key<C>("method.clip", FIELD(method.clip), "awq: weights of a group are cut off where that makes its outputs better (not in q and k, as published)."),
      word_key<C>("method.scale_loss", FIELD(method.scale_loss), scale_losses, "awq: what a scale is chosen by: the errors of the outputs of the linear layers that read the input, or, where they are several, of the attention or MLP that they are part of (as published; several times as slow, and no better where it was measured)."),
      number_key<C>("method.sparsity", FIELD(method.sparsity.share), share_rule, "Share of the weights that a pruner sets to zero: sparsegpt of each block of columns of the matrix, wanda and magnitude of each row."),
      {"method.pattern", pattern_expected, "n:m sparsity instead of a share: zeros of every so many columns of a row.",
       [](C& c, const YAML::Node& node, const MapReader&) { c.method.sparsity.pattern = read_pattern(node); },
       [](const C& c) { return print_pattern(c.method.sparsity.pattern); }},
      word_key<C>("method.layer_sparsity", FIELD(method.sparsity.by_outliers), layer_sparsities, "uniform: every layer has the share `sparsity`; owl: blocks of the model with more outliers keep more of their weights (outlier-weighed, arXiv 2310.05175), and `sparsity` is the mean. Layers whose override sets sparsity or pattern take no part."),
      number_key<C>("method.owl.m", FIELD(method.sparsity.owl.m), {1.0, 1000.0}, "owl: an outlier's |weight| times the norm of its input is above so many times the mean of its block."),
      number_key<C>("method.owl.lambda", FIELD(method.sparsity.owl.lambda), {0.0, 0.5}, "owl: the blocks' shares of zeros lie in a range of twice this."),
      word_key<C>("method.error_measure", FIELD(method.error_measure), error_measures, "What errors in the report are: hessian: of the layer's outputs; norms: of its weights, each times the norm of its input, as if inputs were uncorrelated. Methods that solve with the Hessian (gptq, sparsegpt, awq) have it anyway; for the others norms saves most of the statistics. auto: norms for wanda, else hessian."),
      word_key<C>("method.propagation", FIELD(propagation), propagations, "What the next layer's statistics are measured on: outputs of the compressed layers, or of the dense model."),
      word_key<C>("method.sequential", FIELD(true_sequential), sequential_kinds, "true_sequential: inside a block too, each stage sees the compressed stages before it; per_block: it sees the dense ones. The scales, clip and errors of awq are those of the dense block either way."),

      list_key("skip", "list of regular expressions", FIELD(skip), expression, "Layers left as they are: each expression is searched in the layer's name."),
      {"overrides", "list of maps", "Other settings for the layers that match.",
       read_overrides, print_overrides},
      list_key("export", "list of " + formats.expectation(), FIELD(exports), [](const YAML::Node& node) { return formats.at(text(node)); }, "Formats written when the job is done."),

      word_key<C>("evaluate.calibration_loss", FIELD(evaluate.calibration_loss), calibration_losses, "Mean cross-entropy of a token, dense and compressed, on up to the first 65 536 tokens of the calibration set: what a job costs the model, comparable between jobs of one text, though it is text that they have seen. Takes a forward pass of those tokens by the compressed model and, once for all jobs of a text, by the dense one. auto: where another job of the run differs in method.propagation only."),
      optional_path_key("evaluate.perplexity.tokens", FIELD(evaluate.tokens), "Token file that perplexity is measured on, dense and compressed; null: no evaluation."),
      integer_key<C>("evaluate.perplexity.window", FIELD(evaluate.window), {2, 1 << 24}, "Tokens of a window."),
      integer_key<C>("evaluate.perplexity.stride", FIELD(evaluate.stride), {1, 1 << 24}, "Tokens from one window to the next; at most the window."),
  };
  return keys;
}
#undef FIELD
// clang-format on

std::string to_text(Propagation propagation) { return propagations.of(propagation); }
std::string to_text(LayoutSettings::Mode mode) { return modes.of(mode); }
std::string to_text(at::ScalarType dtype) {
  const std::string word = scale_dtypes.of(dtype);
  return word.empty() ? "auto" : word;
}

}  // namespace selfcal
