#include "storage/tensor_header.hpp"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "storage/dtype.hpp"

namespace selfcal {
namespace {

/// Receives the JSON events. The grammar is flat: {"__metadata__": {text: text}, name: {dtype,
/// shape, data_offsets}}, so anything nested deeper is refused on sight and the parser's work is
/// linear in the header's length.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::string& file) : file_(file) {}

  TensorHeader take() { return std::move(header_); }

  bool start_object(size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::top;
    } else if (place_ == Place::top) {
      place_ = name_ == "__metadata__" ? Place::metadata : Place::tensor;
      has_dtype_ = has_shape_ = false;
      tensor_ = {};
      offsets_.clear();
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(string_t& value) override {
    if (place_ == Place::top) {
      name_ = value;
      if (header_.entries.contains(name_) || (name_ == "__metadata__" && has_metadata_))
        wrong("listed twice");
      has_metadata_ |= name_ == "__metadata__";
    } else {
      field_ = value;
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor) add_tensor();
    place_ = place_ == Place::top ? Place::outside : Place::top;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::tensor && field_ == "shape" && !has_shape_) {
      place_ = Place::shape;
      has_shape_ = true;
    } else if (place_ == Place::tensor && field_ == "data_offsets" && offsets_.empty()) {
      place_ = Place::offsets;
    } else {
      unexpected("a list");
    }
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata) {
      if (!header_.metadata.emplace(field_, value).second)
        wrong("'{}' is given twice", printable(field_));
    } else if (place_ == Place::tensor && field_ == "dtype" && !has_dtype_) {
      const auto dtype = dtype_of_name(value);
      if (!dtype)
        wrong("dtype '{}' is not supported, expected one of {}", printable(value), known_dtypes());
      tensor_.dtype = *dtype;
      has_dtype_ = true;
    } else {
      unexpected("a string");
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::shape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        wrong("dimension {} is too large", value);
      if (tensor_.shape.size() == most_dimensions)
        wrong("more than {} dimensions", most_dimensions);
      tensor_.shape.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::offsets && offsets_.size() < 2) {
      offsets_.push_back(value);
    } else {
      unexpected("a number");
    }
    return true;
  }

  bool number_integer(number_integer_t value) override {
    wrong("{} is {}, expected a count of 0 or more", printable(field_), value);
  }
  bool number_float(number_float_t, const string_t& text) override {
    wrong("{} is {}, expected an integer below 2^63", printable(field_), printable(text));
  }
  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("true or false"); }
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    fail(ExitCode::data, "{}: the header is not valid JSON in UTF-8 (byte {} of the header)", file_,
         position);
  }

 private:
  enum class Place { outside, top, metadata, tensor, shape, offsets };
  static constexpr size_t most_dimensions = 64;

  template <class... Args>
  [[noreturn]] void wrong(fmt::format_string<Args...> text, Args&&... args) const {
    const std::string reason = fmt::format(text, std::forward<Args>(args)...);
    if (place_ == Place::outside) fail(ExitCode::data, "{}: the header: {}", file_, reason);
    fail(ExitCode::data, "{}: tensor '{}': {}", file_, printable(name_), reason);
  }

  [[noreturn]] void unexpected(const char* what) const {
    if (place_ == Place::outside)
      fail(ExitCode::data, "{}: the header is {}, expected an object", file_, what);
    if (place_ == Place::top) wrong("is {}, expected an object", what);
    if (place_ == Place::metadata) wrong("'{}' is {}, expected a string", printable(field_), what);
    wrong(
        "{} where '{}' stands; expected one string dtype, one list shape of integers and one pair "
        "data_offsets",
        what, printable(field_));
  }

  void add_tensor() {
    if (!has_dtype_ || !has_shape_ || offsets_.size() != 2)
      wrong("needs dtype, shape and data_offsets [begin, end]");
    if (offsets_[1] < offsets_[0])
      wrong("ends at byte {} before it begins at {}", offsets_[1], offsets_[0]);
    tensor_.offset = offsets_[0];
    tensor_.bytes = offsets_[1] - offsets_[0];
    const uint64_t expected = bytes_of_shape();
    if (tensor_.bytes != expected)
      wrong("has {} bytes, expected {} for {} {}", tensor_.bytes, expected,
            dtype_name(tensor_.dtype), shape_text(tensor_.shape));
    header_.entries.emplace(name_, std::move(tensor_));
  }

  /// Counts a zero dimension as one for the overflow check: [0, 2^62, 2^62] is refused too.
  uint64_t bytes_of_shape() const {
    int64_t bound = static_cast<int64_t>(c10::elementSize(tensor_.dtype));
    bool empty = false;
    for (const int64_t size : tensor_.shape) {
      empty |= size == 0;
      if (__builtin_mul_overflow(bound, std::max<int64_t>(size, 1), &bound))
        wrong("shape {} overflows", shape_text(tensor_.shape));
    }
    return empty ? 0 : static_cast<uint64_t>(bound);
  }

  const std::string& file_;
  TensorHeader header_;
  Place place_ = Place::outside;
  std::string name_, field_;
  TensorEntry tensor_{};
  std::vector<uint64_t> offsets_;
  bool has_dtype_ = false, has_shape_ = false, has_metadata_ = false;
};

/// The tensors, sorted by offset, must follow each other from 0 to the end of the file.
void check_tiling(const TensorHeader& header, uint64_t data_bytes, const std::string& file) {
  std::vector<std::pair<const std::string*, const TensorEntry*>> order;
  for (const auto& [name, entry] : header.entries) order.emplace_back(&name, &entry);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->offset, a.second->bytes) <
           std::pair(b.second->offset, b.second->bytes);
  });
  uint64_t end = 0;
  for (const auto& [name, entry] : order) {
    if (entry->offset != end)
      fail(ExitCode::data, "{}: tensor '{}' begins at byte {} of the data, expected {}: tensors {}",
           file, printable(*name), entry->offset, end,
           entry->offset < end ? "overlap" : "leave a hole");
    end = entry->offset + entry->bytes;
    if (end > data_bytes)
      fail(ExitCode::data,
           "{}: truncated: tensor '{}' ends at byte {} of the data, the file has {}", file,
           printable(*name), end, data_bytes);
  }
  if (end != data_bytes)
    fail(ExitCode::data, "{}: {} bytes of tensor data, expected {} by the header", file, data_bytes,
         end);
}

}  // namespace

TensorHeader parse_tensor_header(std::string_view text, uint64_t data_bytes,
                                 const std::string& file) {
  HeaderReader reader(file);
  nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  TensorHeader header = reader.take();
  check_tiling(header, data_bytes, file);
  return header;
}

std::string make_tensor_header(std::map<std::string, TensorEntry>& entries,
                               const std::map<std::string, std::string>& metadata) {
  std::vector<std::map<std::string, TensorEntry>::iterator> order;
  for (auto entry = entries.begin(); entry != entries.end(); ++entry) order.push_back(entry);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return c10::elementSize(a->second.dtype) > c10::elementSize(b->second.dtype);
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const auto& entry : order) {
    auto& [name, tensor] = *entry;
    tensor.offset = offset;
    offset += tensor.bytes;
    header.get_ref<nlohmann::ordered_json::object_t&>().push_back(
        {name,
         {{"dtype", dtype_name(tensor.dtype)},
          {"shape", tensor.shape},
          {"data_offsets", {tensor.offset, offset}}}});
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace selfcal
