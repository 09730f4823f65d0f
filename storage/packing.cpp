#include "storage/packing.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "base/error.hpp"
#include "storage/dtype.hpp"

namespace selfcal {
namespace {

constexpr int64_t codes_at_once = 8;  // they fill as many bytes as a code has bits
static_assert(std::endian::native == std::endian::little);

/// Bits [from, from + width) of each run of `every` bits.
constexpr uint64_t fields(int from, int width, int every) {
  uint64_t mask = 0;
  for (int at = from; at < 64; at += every) mask |= ~uint64_t{0} >> (64 - width) << at;
  return mask;
}

/// 8 codes of a byte each, to `bits` bits each: neighbours are joined in three steps.
template <int bits>
uint64_t joined(uint64_t codes) {
  const auto join = [&]<int width>() {  // of what has come together so far
    constexpr int every = 8 * width / bits;
    codes = (codes & fields(0, width, 2 * every)) |
            (codes >> (every - width) & fields(width, width, 2 * every));
  };
  join.template operator()<bits>();
  join.template operator()<2 * bits>();
  join.template operator()<4 * bits>();
  return codes;
}

/// Back again.
template <int bits>
uint64_t parted(uint64_t codes) {
  const auto part = [&]<int width>() {
    constexpr int every = 8 * width / bits;
    codes = (codes & fields(0, width, 2 * every)) | (codes & fields(width, width, 2 * every))
                                                        << (every - width);
  };
  part.template operator()<4 * bits>();
  part.template operator()<2 * bits>();
  part.template operator()<bits>();
  return codes;
}

/// Returns whether all codes fit.
template <int bits>
bool pack_row(const uint8_t* codes, int64_t columns, uint8_t* packed) {
  uint64_t eight = 0, all = 0;
  for (; columns >= codes_at_once; columns -= codes_at_once, codes += codes_at_once) {
    std::memcpy(&eight, codes, sizeof eight);
    all |= eight;
    eight = joined<bits>(eight);
    std::memcpy(packed, &eight, bits);
    packed += bits;
  }
  eight = 0;
  std::memcpy(&eight, codes, size_t(columns));
  all |= eight;
  eight = joined<bits>(eight);
  std::memcpy(packed, &eight, size_t(packed_row_bytes(columns, bits)));
  return (all & ~fields(0, bits, 8)) == 0;
}

template <int bits>
void unpack_row(const uint8_t* packed, int64_t columns, uint8_t* codes) {
  for (; columns >= codes_at_once; columns -= codes_at_once, codes += codes_at_once) {
    uint64_t eight = 0;
    if (columns >= 8 * codes_at_once)  // one load: what lies beyond is of the same row
      std::memcpy(&eight, packed, sizeof eight);
    else
      std::memcpy(&eight, packed, bits);
    eight = parted<bits>(eight);
    std::memcpy(codes, &eight, sizeof eight);
    packed += bits;
  }
  uint64_t eight = 0;
  std::memcpy(&eight, packed, size_t(packed_row_bytes(columns, bits)));
  eight = parted<bits>(eight);
  std::memcpy(codes, &eight, size_t(columns));
}

struct RowPacking {
  bool (*pack)(const uint8_t* codes, int64_t columns, uint8_t* packed);
  void (*unpack)(const uint8_t* packed, int64_t columns, uint8_t* codes);
};

const RowPacking& packing_of(int bits) {
  static constexpr std::array<RowPacking, 8> all{{{pack_row<1>, unpack_row<1>},
                                                  {pack_row<2>, unpack_row<2>},
                                                  {pack_row<3>, unpack_row<3>},
                                                  {pack_row<4>, unpack_row<4>},
                                                  {pack_row<5>, unpack_row<5>},
                                                  {pack_row<6>, unpack_row<6>},
                                                  {pack_row<7>, unpack_row<7>},
                                                  {pack_row<8>, unpack_row<8>}}};
  return all.at(size_t(bits) - 1);
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

/// Columns [first, last) of one group.
struct Run {
  int64_t first, last, group;
};

/// Runs of neighbouring columns, their groups checked against the number of groups.
std::vector<Run> runs_of_groups(const CompressedLinear& linear, int64_t columns, int64_t groups,
                                const std::string& name) {
  std::vector<Run> runs;
  const auto append = [&](int64_t first, int64_t last, int64_t group) {
    if (group < 0 || group >= groups)
      fail(ExitCode::data, "{}: a column is of group {}, expected 0 to {}", name, group,
           groups - 1);
    if (!runs.empty() && runs.back().group == group)
      runs.back().last = last;
    else
      runs.push_back({first, last, group});
  };
  if (linear.g_idx.defined()) {
    if (linear.g_idx.scalar_type() != at::kInt || linear.g_idx.dim() != 1 ||
        linear.g_idx.size(0) != columns)
      fail(ExitCode::data, "{}: g_idx is {} {}, expected I32 [{}]", name,
           dtype_name(linear.g_idx.scalar_type()), shape_text(linear.g_idx.sizes().vec()), columns);
    const at::Tensor index = linear.g_idx.contiguous();
    for (int64_t column = 0; column < columns; ++column)
      append(column, column + 1, index.const_data_ptr<int32_t>()[column]);
    return runs;
  }
  const int64_t size = linear.group_size;
  if (size < 1) fail(ExitCode::data, "{}: group size {}, expected 1 or more", name, size);
  for (int64_t first = 0; first < columns; first += size)
    append(first, std::min(first + size, columns), first / size);
  return runs;
}

void dequantise_run(const uint8_t* codes, int64_t count, int32_t zero, float scale, float* values) {
  // In copies that nothing else can be seen to change: the loop becomes vector code.
  std::array<uint8_t, 16> some_codes;
  std::array<float, 16> some_values;
  constexpr int64_t at_once = some_codes.size();
  const auto value_of = [&](uint8_t code) { return static_cast<float>(code - zero) * scale; };
  for (; count >= at_once; count -= at_once, codes += at_once, values += at_once) {
    std::memcpy(some_codes.data(), codes, sizeof some_codes);
    for (size_t i = 0; i < some_codes.size(); ++i) some_values[i] = value_of(some_codes[i]);
    std::memcpy(values, some_values.data(), sizeof some_values);
  }
  for (int64_t i = 0; i < count; ++i) values[i] = value_of(codes[i]);
}

}  // namespace

int64_t packed_row_bytes(int64_t columns, int bits) { return (columns * bits + 7) / 8; }

at::Tensor pack_codes(const at::Tensor& codes, int bits) {
  const at::Tensor plain = codes.contiguous();
  const int64_t rows = plain.size(0), columns = plain.size(1),
                row_bytes = packed_row_bytes(columns, bits);
  const auto* source = plain.const_data_ptr<uint8_t>();
  at::Tensor packed = at::empty({rows, row_bytes}, at::kByte);
  auto* into = packed.mutable_data_ptr<uint8_t>();
  const auto pack = packing_of(bits).pack;
  for (int64_t row = 0; row < rows; ++row)
    if (!pack(source + row * columns, columns, into + row * row_bytes))
      fail(ExitCode::internal, "code {} does not fit into {} bits", plain[row].max().item<int>(),
           bits);
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
  const auto unpack = packing_of(bits).unpack;
  for (int64_t row = 0; row < rows; ++row)
    unpack(source + row * row_bytes, columns, into + row * columns);
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
  const std::vector<Run> runs = runs_of_groups(linear, columns, groups, name);

  const at::Tensor packed = linear.codes.contiguous(),
                   scale = linear.scale.to(at::kFloat).contiguous();
  const at::Tensor zero = zero_points(linear).contiguous();
  at::Tensor weight = at::empty({rows, columns}, dtype);
  constexpr int64_t rows_at_once = 64;  // rounded to dtype by one call
  at::Tensor some = at::empty({std::min(rows, rows_at_once), columns}, at::kFloat);
  std::vector<uint8_t> codes(static_cast<size_t>(columns));
  const auto unpack = packing_of(bits).unpack;
  for (int64_t first = 0; first < rows; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, rows - first);
    auto* values = some.mutable_data_ptr<float>();
    for (int64_t row = first; row < first + count; ++row, values += columns) {
      unpack(packed.const_data_ptr<uint8_t>() + row * row_bytes, columns, codes.data());
      const float* scales = scale.const_data_ptr<float>() + row * groups;
      const uint8_t* zeros = zero.const_data_ptr<uint8_t>() + row * groups;
      for (const auto& [begin, end, group] : runs)
        dequantise_run(codes.data() + begin, end - begin, zeros[group], scales[group],
                       values + begin);
    }
    weight.narrow(0, first, count).copy_(some.narrow(0, 0, count));
  }
  return weight;
}

}  // namespace selfcal
