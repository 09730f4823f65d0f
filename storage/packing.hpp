// How codes and masks lie in bytes, and the one rule that turns codes back into weights. Solvers,
// layer files and exports all use these functions, so that a weight has the same bits wherever it
// is rebuilt.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "storage/layer_file.hpp"

namespace selfcal {

/// Bytes of one row of `columns` codes: ceil(columns * bits / 8).
int64_t packed_row_bytes(int64_t columns, int bits);

/// codes: uint8 [rows, columns], each below 2^bits, bits 1..8. Result: uint8 [rows,
/// packed_row_bytes], low bits first along the row; the unused bits of a row's last byte are 0. A
/// code that is too large is ExitCode::internal.
at::Tensor pack_codes(const at::Tensor& codes, int bits);
/// The inverse: uint8 [rows, columns].
at::Tensor unpack_codes(const at::Tensor& packed, int bits, int64_t columns);

/// kept: bool or uint8 [rows, columns], 0 = pruned. Result: uint8 [rows, ceil(columns / 8)], low
/// bits first.
at::Tensor pack_mask(const at::Tensor& kept);
/// The inverse: bool [rows, columns].
at::Tensor unpack_mask(const at::Tensor& packed, int64_t columns);

/// The zero points, uint8 [rows, groups]: those of the linear, or 2^(bits - 1) where it has none.
at::Tensor zero_points(const CompressedLinear& linear);

/// (code - zero) * scale, computed in float32 with the scale as stored, then rounded once to
/// `dtype`: [rows, columns]. Column c belongs to group g_idx[c], or c / group_size without g_idx.
/// The linear's `weight` is not looked at. Fields that do not
/// fit together are ExitCode::data beginning with `name`.
at::Tensor dequantise(const CompressedLinear& linear, int64_t columns, at::ScalarType dtype,
                      const std::string& name);

}  // namespace selfcal
