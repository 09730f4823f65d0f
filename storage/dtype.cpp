#include "storage/dtype.hpp"

#include <array>
#include <utility>

#include "base/error.hpp"

namespace selfcal {
namespace {

constexpr std::array<std::pair<std::string_view, at::ScalarType>, 10> names{
    {{"F64", at::kDouble},
     {"F32", at::kFloat},
     {"F16", at::kHalf},
     {"BF16", at::kBFloat16},
     {"I64", at::kLong},
     {"I32", at::kInt},
     {"I16", at::kShort},
     {"I8", at::kChar},
     {"U8", at::kByte},
     {"BOOL", at::kBool}}};

}  // namespace

std::string_view dtype_name(at::ScalarType dtype) {
  for (const auto& [name, known] : names)
    if (known == dtype) return name;
  fail(ExitCode::internal, "no file format for elements of type {}", c10::toString(dtype));
}

std::optional<at::ScalarType> dtype_of_name(std::string_view name) {
  for (const auto& [known, dtype] : names)
    if (known == name) return dtype;
  return {};
}

std::string known_dtypes() {
  std::string text;
  for (const auto& [name, dtype] : names) text += (text.empty() ? "" : " ") + std::string(name);
  return text;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string printable(std::string_view name) {
  constexpr size_t longest = 200;
  std::string text;
  for (const char c : name.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f || c == '\\' || c == '\'')
      text += fmt::format("\\x{:02x}", byte);
    else
      text += c;
  }
  return name.size() > longest ? text + "..." : text;
}

}  // namespace selfcal
