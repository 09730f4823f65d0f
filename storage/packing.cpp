#include "storage/packing.hpp"

#include <ATen/ATen.h>

#include <vector>

#include "base/error.hpp"
#include "storage/dtype.hpp"

namespace selfcal {
namespace {

void pack_row(const uint8_t* codes, int64_t columns, int bits, uint8_t* packed) {
  uint32_t buffer = 0;
  int held = 0;
  for (int64_t column = 0; column < columns; ++column) {
    buffer |= static_cast<uint32_t>(codes[column]) << held;
    for (held += bits; held >= 8; held -= 8, buffer >>= 8) *packed++ = static_cast<uint8_t>(buffer);
  }
  if (held > 0) *packed = static_cast<uint8_t>(buffer);
}

void unpack_row(const uint8_t* packed, int64_t columns, int bits, uint8_t* codes) {
  const uint32_t low = (1U << bits) - 1;
  uint32_t buffer = 0;
  int held = 0;
  for (int64_t column = 0; column < columns; ++column) {
    if (held < bits) {
      buffer |= static_cast<uint32_t>(*packed++) << held;
      held += 8;
    }
    codes[column] = static_cast<uint8_t>(buffer & low);
    buffer >>= bits;
    held -= bits;
  }
}

void expect_matrix(const at::Tensor& tensor, at::ScalarType dtype, int64_t rows, int64_t columns,
                   const char* field, const std::string& name) {
  if (!tensor.defined()) fail(ExitCode::data, "{}: has no {}", name, field);
  if (tensor.scalar_type() != dtype || tensor.dim() != 2 || tensor.size(0) != rows ||
      tensor.size(1) != columns)
    fail(ExitCode::data, "{}: {} is {} {}, expected {} [{}, {}]", name, field,
         dtype_name(tensor.scalar_type()), shape_text(tensor.sizes().vec()), dtype_name(dtype),
         rows, columns);
}

/// The group of each column, checked against the number of groups.
std::vector<int32_t> groups_of_columns(const CompressedLinear& linear, int64_t columns,
                                       int64_t groups, const std::string& name) {
  std::vector<int32_t> group(static_cast<size_t>(columns));
  if (linear.g_idx.defined()) {
    if (linear.g_idx.scalar_type() != at::kInt || linear.g_idx.dim() != 1 ||
        linear.g_idx.size(0) != columns)
      fail(ExitCode::data, "{}: g_idx is {} {}, expected I32 [{}]", name,
           dtype_name(linear.g_idx.scalar_type()), shape_text(linear.g_idx.sizes().vec()), columns);
    const at::Tensor index = linear.g_idx.contiguous();
    std::copy_n(index.const_data_ptr<int32_t>(), columns, group.begin());
  } else {
    if (linear.group_size < 1)
      fail(ExitCode::data, "{}: group size {}, expected 1 or more", name, linear.group_size);
    for (int64_t column = 0; column < columns; ++column)
      group[static_cast<size_t>(column)] = static_cast<int32_t>(column / linear.group_size);
  }
  for (const int32_t g : group)
    if (g < 0 || g >= groups)
      fail(ExitCode::data, "{}: a column is of group {}, expected 0 to {}", name, g, groups - 1);
  return group;
}

}  // namespace

int64_t packed_row_bytes(int64_t columns, int bits) { return (columns * bits + 7) / 8; }

at::Tensor pack_codes(const at::Tensor& codes, int bits) {
  const at::Tensor plain = codes.contiguous();
  const int64_t rows = plain.size(0), columns = plain.size(1),
                row_bytes = packed_row_bytes(columns, bits);
  const auto* source = plain.const_data_ptr<uint8_t>();
  for (int64_t i = 0; i < plain.numel(); ++i)
    if (source[i] >> bits)
      fail(ExitCode::internal, "code {} does not fit into {} bits", source[i], bits);
  at::Tensor packed = at::empty({rows, row_bytes}, at::kByte);
  auto* into = packed.mutable_data_ptr<uint8_t>();
  for (int64_t row = 0; row < rows; ++row)
    pack_row(source + row * columns, columns, bits, into + row * row_bytes);
  return packed;
}

at::Tensor unpack_codes(const at::Tensor& packed, int bits, int64_t columns) {
  const at::Tensor dense = packed.contiguous();
  const int64_t rows = dense.size(0), row_bytes = packed_row_bytes(columns, bits);
  if (dense.size(1) != row_bytes)
    fail(ExitCode::internal, "packed rows of {} bytes, expected {}", dense.size(1), row_bytes);
  at::Tensor codes = at::empty({rows, columns}, at::kByte);
  const auto* source = dense.const_data_ptr<uint8_t>();
  auto* into = codes.mutable_data_ptr<uint8_t>();
  for (int64_t row = 0; row < rows; ++row)
    unpack_row(source + row * row_bytes, columns, bits, into + row * columns);
  return codes;
}

at::Tensor pack_mask(const at::Tensor& kept) { return pack_codes(kept.ne(0).to(at::kByte), 1); }

at::Tensor unpack_mask(const at::Tensor& packed, int64_t columns) {
  return unpack_codes(packed, 1, columns).to(at::kBool);
}

at::Tensor zero_points(const CompressedLinear& linear) {
  return linear.zero.defined() ? linear.zero
                               : at::full(linear.scale.sizes(), 1 << (linear.bits - 1), at::kByte);
}

at::Tensor dequantise(const CompressedLinear& linear, int64_t columns, at::ScalarType dtype,
                      const std::string& name) {
  const int bits = linear.bits;
  if (bits < 1 || bits > 8) fail(ExitCode::data, "{}: {} bits, expected 1 to 8", name, bits);
  if (!linear.codes.defined() || linear.codes.dim() != 2)
    fail(ExitCode::data, "{}: has no matrix of codes", name);
  const int64_t rows = linear.codes.size(0), row_bytes = packed_row_bytes(columns, bits);
  expect_matrix(linear.codes, at::kByte, rows, row_bytes, "codes", name);
  const int64_t groups =
      linear.scale.defined() && linear.scale.dim() == 2 ? linear.scale.size(1) : 0;
  expect_matrix(linear.scale, linear.scale.defined() ? linear.scale.scalar_type() : dtype, rows,
                groups, "scale", name);
  if (linear.zero.defined()) expect_matrix(linear.zero, at::kByte, rows, groups, "zero", name);
  const auto group = groups_of_columns(linear, columns, groups, name);

  const at::Tensor packed = linear.codes.contiguous(),
                   scale = linear.scale.to(at::kFloat).contiguous();
  const at::Tensor zero = zero_points(linear).contiguous();
  at::Tensor weight = at::empty({rows, columns}, dtype);
  constexpr int64_t rows_at_once = 64;  // rounded to dtype by one call
  at::Tensor some = at::empty({std::min(rows, rows_at_once), columns}, at::kFloat);
  std::vector<uint8_t> codes(static_cast<size_t>(columns));
  for (int64_t first = 0; first < rows; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, rows - first);
    auto* values = some.mutable_data_ptr<float>();
    for (int64_t row = first; row < first + count; ++row, values += columns) {
      unpack_row(packed.const_data_ptr<uint8_t>() + row * row_bytes, columns, bits, codes.data());
      const float* scales = scale.const_data_ptr<float>() + row * groups;
      const uint8_t* zeros = zero.const_data_ptr<uint8_t>() + row * groups;
      for (int64_t column = 0; column < columns; ++column) {
        const int32_t g = group[static_cast<size_t>(column)];
        values[column] =
            static_cast<float>(codes[static_cast<size_t>(column)] - zeros[g]) * scales[g];
      }
    }
    weight.narrow(0, first, count).copy_(some.narrow(0, 0, count));
  }
  return weight;
}

}  // namespace selfcal
