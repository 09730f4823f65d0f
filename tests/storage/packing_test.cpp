#include "storage/packing.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "temporary_folder.hpp"

namespace selfcal {
namespace {

at::Tensor random_codes(int64_t rows, int64_t columns, int bits) {
  return at::randint(0, 1 << bits, {rows, columns}, at::kByte);
}

TEST(Packing, CodesComeBackForEveryWidth) {
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int64_t columns : {1, 7, 8, 32, 33, 576}) {
      const at::Tensor codes = random_codes(5, columns, bits);
      const at::Tensor packed = pack_codes(codes, bits);
      EXPECT_EQ(packed.size(1), (columns * bits + 7) / 8);
      EXPECT_TRUE(at::equal(unpack_codes(packed, bits, columns), codes))
          << bits << " bits, " << columns;
    }
  }
}

TEST(Packing, LowBitsComeFirst) {
  const at::Tensor codes = at::tensor({1, 2, 3, 15}, at::kByte).reshape({1, 4});
  EXPECT_TRUE(at::equal(pack_codes(codes, 4), at::tensor({0x21, 0xf3}, at::kByte).reshape({1, 2})));
  const at::Tensor three = at::tensor({1, 2, 3}, at::kByte).reshape({1, 3});  // 011 010 001
  EXPECT_TRUE(at::equal(pack_codes(three, 3), at::tensor({0xd1, 0x00}, at::kByte).reshape({1, 2})));
}

TEST(Packing, CodesTooWideAreRefused) {
  expect_error(ExitCode::internal, "does not fit", [] {
    pack_codes(at::full({1, 2}, 16, at::kByte), 4);
  });
}

TEST(Packing, MasksComeBack) {
  const at::Tensor kept = at::randint(0, 2, {4, 19}, at::kByte);
  EXPECT_EQ(pack_mask(kept).size(1), 3);
  EXPECT_TRUE(at::equal(unpack_mask(pack_mask(kept), 19), kept.to(at::kBool)));
  EXPECT_TRUE(at::equal(pack_mask(kept.to(at::kBool)), pack_mask(kept)));
}

CompressedLinear small_linear(at::ScalarType scale_dtype, bool symmetric) {
  CompressedLinear linear;
  linear.bits = 3;
  linear.group_size = 4;
  linear.symmetric = symmetric;
  linear.codes = pack_codes(random_codes(6, 12, 3), 3);
  linear.scale = at::rand({6, 3}).add(0.1).to(scale_dtype);
  if (!symmetric) linear.zero = random_codes(6, 3, 3);
  return linear;
}

at::Tensor expected_weight(const CompressedLinear& linear, at::ScalarType dtype) {
  const at::Tensor group = linear.g_idx.defined() ? linear.g_idx.to(at::kLong)
                                                  : at::arange(12, at::kLong).div(4, "floor");
  const at::Tensor zero =
      linear.zero.defined() ? linear.zero.to(at::kFloat) : at::full({6, 3}, 4.0);
  return ((unpack_codes(linear.codes, 3, 12).to(at::kFloat) - zero.index_select(1, group)) *
          linear.scale.to(at::kFloat).index_select(1, group))
      .to(dtype);
}

TEST(Dequantise, IsCodeLessZeroTimesScaleRoundedOnce) {
  for (const auto scale_dtype : {at::kFloat, at::kBFloat16, at::kHalf})
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf})
      for (const bool symmetric : {true, false}) {
        const CompressedLinear linear = small_linear(scale_dtype, symmetric);
        const at::Tensor weight = dequantise(linear, 12, dtype, "w");
        EXPECT_EQ(weight.scalar_type(), dtype);
        EXPECT_TRUE(at::equal(weight, expected_weight(linear, dtype)));
      }
}

TEST(Dequantise, FollowsTheGroupIndex) {
  CompressedLinear linear = small_linear(at::kFloat, false);
  linear.g_idx = at::tensor({2, 0, 1, 1, 2, 2, 0, 0, 1, 2, 0, 1}, at::kInt);
  EXPECT_TRUE(
      at::equal(dequantise(linear, 12, at::kFloat, "w"), expected_weight(linear, at::kFloat)));
}

TEST(Dequantise, RefusesFieldsThatDoNotFit) {
  const auto expect_refused = [](const std::string& part, auto&& change) {
    CompressedLinear linear = small_linear(at::kFloat, false);
    change(linear);
    expect_error(ExitCode::data, "w: " + part, [&] { dequantise(linear, 12, at::kFloat, "w"); });
  };
  expect_refused("0 bits", [](auto& linear) { linear.bits = 0; });
  expect_refused("has no matrix of codes", [](auto& linear) { linear.codes = at::Tensor(); });
  expect_refused("codes is U8 [6, 5], expected U8 [6, 6]", [](auto& linear) { linear.bits = 4; });
  expect_refused("has no scale", [](auto& linear) { linear.scale = at::Tensor(); });
  expect_refused("zero is U8 [6, 2]",
                 [](auto& linear) { linear.zero = linear.zero.narrow(1, 0, 2); });
  expect_refused("a column is of group 3", [](auto& linear) { linear.group_size = 3; });
  expect_refused("group size 0", [](auto& linear) { linear.group_size = 0; });
  expect_refused("a column is of group -1",
                 [](auto& linear) { linear.g_idx = at::full({12}, -1, at::kInt); });
  expect_refused("g_idx is I32 [11]",
                 [](auto& linear) { linear.g_idx = at::zeros({11}, at::kInt); });
}

}  // namespace
}  // namespace selfcal
