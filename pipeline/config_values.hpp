// Kinds of values a key can take: how each is read from YAML and written back.
#pragma once
#include <limits>
#include <utility>

#include "pipeline/config_table.hpp"

namespace selfcal::values {

/// What stands there, for an error message: the word itself, a list, a map, nothing.
std::string describe(const YAML::Node& node);
/// A scalar that is not quoted; anything else is BadValue.
std::string plain(const YAML::Node& node);
/// Text without control characters, quoted or not.
std::string text(const YAML::Node& node);
/// Text as YAML, quoted where it has to be.
std::string quoted(const std::string& value);
std::string number_text(double value);
uint64_t bytes(const YAML::Node& node);
std::string bytes_text(uint64_t value);

struct IntegerRule {
  int64_t minimum;
  int64_t maximum;
  bool automatic = false;            // the word auto stands for 0
  std::optional<int64_t> also = {};  // one value outside the range
  std::string note = {};
};
int64_t integer(const YAML::Node& node, const IntegerRule& rule);
std::string expectation(const IntegerRule& rule);

struct NumberRule {
  double minimum;
  double maximum;
  bool open = false;  // the minimum itself is not allowed
};
double number(const YAML::Node& node, const NumberRule& rule);
std::string expectation(const NumberRule& rule);

/// Words and what they stand for; `planned` are known, and refused as not supported yet.
template <class E>
struct Words {
  std::vector<std::pair<std::string, E>> list;
  std::vector<std::string> planned = {};

  E at(const std::string& word) const {
    for (const auto& [name, value] : list)
      if (name == word) return value;
    for (const auto& name : planned)
      if (name == word) throw BadValue("found " + word + ", which is not supported yet");
    throw BadValue("found " + quoted(word));
  }
  std::string of(const E& value) const {
    for (const auto& [name, known] : list)
      if (known == value) return name;
    return {};
  }
  std::string expectation() const {
    std::string joined;
    for (const auto& [name, value] : list) joined += (joined.empty() ? "" : " | ") + name;
    return joined;
  }
};

// A field is a function from the owner to a reference to one of its members; it works for const
// owners too.

template <class Owner, class Field>
Key<Owner> integer_key(std::string path, Field field, const IntegerRule& rule, std::string help) {
  return {std::move(path), expectation(rule), std::move(help),
          [=](Owner& owner, const YAML::Node& node, const MapReader&) {
            auto& value = field(owner);
            const int64_t found = integer(node, rule);
            value = static_cast<std::remove_reference_t<decltype(value)>>(found);
          },
          [=](const Owner& owner) {
            const auto value = static_cast<int64_t>(field(owner));
            return rule.automatic && value == 0 ? std::string("auto") : std::to_string(value);
          }};
}

template <class Owner, class Field>
Key<Owner> number_key(std::string path, Field field, const NumberRule& rule, std::string help) {
  return {std::move(path), expectation(rule), std::move(help),
          [=](Owner& owner, const YAML::Node& node, const MapReader&) {
            field(owner) = number(node, rule);
          },
          [=](const Owner& owner) { return number_text(field(owner)); }};
}

template <class Owner, class E, class Field>
Key<Owner> word_key(std::string path, Field field, Words<E> words, std::string help) {
  return {std::move(path), words.expectation(), std::move(help),
          [=](Owner& owner, const YAML::Node& node, const MapReader&) {
            field(owner) = words.at(text(node));
          },
          [=](const Owner& owner) { return quoted(words.of(field(owner))); }};
}

template <class Owner, class Field>
Key<Owner> flag_key(std::string path, Field field, std::string help) {
  const Words<bool> words{{{"true", true}, {"false", false}}};
  return {std::move(path), words.expectation(), std::move(help),
          [=](Owner& owner, const YAML::Node& node, const MapReader&) {
            field(owner) = words.at(plain(node));
          },
          [=](const Owner& owner) { return words.of(field(owner)); }};
}

}  // namespace selfcal::values
