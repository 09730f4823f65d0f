#include "pipeline/config_values.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace selfcal::values {
namespace {

template <class T>
std::optional<T> parsed(const std::string& word) {
  T value{};
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc{} || end != word.data() + word.size()) return std::nullopt;
  return value;
}

/// At most 60 bytes, cut between characters.
std::string shortened(const std::string& word) {
  size_t limit = 60;
  if (word.size() <= limit) return word;
  while ((static_cast<unsigned char>(word[limit]) & 0xc0) == 0x80) --limit;
  return fmt::format("{}...", std::string_view(word).substr(0, limit));
}

struct Unit {
  const char* name;
  uint64_t bytes;
};
constexpr std::array<Unit, 9> units{{{"TiB", 1ull << 40},
                                     {"GiB", 1ull << 30},
                                     {"MiB", 1ull << 20},
                                     {"KiB", 1ull << 10},
                                     {"TB", 1'000'000'000'000},
                                     {"GB", 1'000'000'000},
                                     {"MB", 1'000'000},
                                     {"KB", 1'000},
                                     {"B", 1}}};

}  // namespace

std::string describe(const YAML::Node& node) {
  if (!node.IsDefined() || node.IsNull()) return "nothing";
  if (node.IsSequence()) return "a list";
  if (node.IsMap()) return "a map";
  return node.Tag() == "!" ? "the text " + quoted(shortened(node.Scalar()))
                           : quoted(shortened(node.Scalar()));
}

std::string plain(const YAML::Node& node) {
  if (!node.IsScalar() || node.Tag() == "!") throw BadValue("found " + describe(node));
  return node.Scalar();
}

std::string text(const YAML::Node& node) {
  if (!node.IsScalar() || node.Scalar().empty()) throw BadValue("found " + describe(node));
  const auto& value = node.Scalar();
  if (std::any_of(value.begin(), value.end(),
                  [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
    throw BadValue("found a control character in " + describe(node));
  return value;
}

std::string quoted(const std::string& value) {
  const auto harmless = [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '.' || c == '/' || c == '-';
  };
  std::string lower = value;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  if (!value.empty() && value != "-" && lower != "null" &&
      std::all_of(value.begin(), value.end(), harmless))
    return value;
  std::string result = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') result += '\\';
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      result += c;
  }
  return result + "\"";
}

std::string number_text(double value) {
  std::string result = fmt::format("{}", value);
  return result.find_first_of(".e") == std::string::npos ? result + ".0" : result;
}

uint64_t bytes(const YAML::Node& node) {
  const std::string word = plain(node);
  if (word == "auto") return 0;
  const size_t digits = word.find_first_not_of("0123456789");
  const auto count = parsed<uint64_t>(word.substr(0, digits));
  std::string unit = digits == std::string::npos ? "B" : word.substr(digits);
  unit.erase(0, unit.find_first_not_of(' '));
  const auto* known =
      std::find_if(units.begin(), units.end(), [&](const Unit& u) { return u.name == unit; });
  if (!count || *count == 0 || known == units.end() || *count > (1ull << 50) / known->bytes)
    throw BadValue("found " + describe(node));
  return *count * known->bytes;
}

std::string bytes_text(uint64_t value) {
  if (value == 0) return "auto";
  for (const auto& unit : units)
    if (value % unit.bytes == 0) return fmt::format("{}{}", value / unit.bytes, unit.name);
  return {};
}

int64_t integer(const YAML::Node& node, const IntegerRule& rule) {
  const std::string word = plain(node);
  if (rule.automatic && word == "auto") return 0;
  const auto value = parsed<int64_t>(word);
  if (!value || ((*value < rule.minimum || *value > rule.maximum) && value != rule.also))
    throw BadValue("found " + describe(node));
  return *value;
}

std::string expectation(const IntegerRule& rule) {
  std::string result = rule.automatic ? "auto or " : "";
  if (rule.also) result += fmt::format("{} or ", *rule.also);
  if (rule.minimum == rule.maximum)
    result += std::to_string(rule.minimum);
  else if (rule.maximum == std::numeric_limits<int64_t>::max())
    result += fmt::format("integer of at least {}", rule.minimum);
  else
    result += fmt::format("integer from {} to {}", rule.minimum, rule.maximum);
  return rule.note.empty() ? result : result + " (" + rule.note + ")";
}

double number(const YAML::Node& node, const NumberRule& rule) {
  const auto value = parsed<double>(plain(node));
  if (!value || !std::isfinite(*value) || *value < rule.minimum || *value > rule.maximum ||
      (rule.open && *value == rule.minimum))
    throw BadValue("found " + describe(node));
  return *value;
}

std::string expectation(const NumberRule& rule) {
  return fmt::format("number {} {} {} {}", rule.open ? "above" : "from", number_text(rule.minimum),
                     rule.open ? "up to" : "to", number_text(rule.maximum));
}

}  // namespace selfcal::values
