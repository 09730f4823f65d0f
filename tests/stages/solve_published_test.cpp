// The solvers against the answers of the published code on a real layer.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "storage/packing.hpp"
#include "storage/tensor_file.hpp"
#include "tests/stages/solve_support.hpp"

namespace selfcal {
namespace {

using namespace testing_support;

const char* const fixture = SELFCAL_TEST_DATA "/solvers/k_proj.safetensors";

MethodSettings settings_of(const nlohmann::json& published) {
  MethodSettings settings;
  settings.bits = published["bits"];
  settings.group_size = published["group_size"];
  settings.symmetric = published["symmetric"];
  settings.act_order = published["act_order"] ? ActOrder::static_order : ActOrder::none;
  settings.static_groups = published["static_groups"] ? AutoFlag::yes : AutoFlag::no;
  settings.mse = published["mse"] ? AutoFlag::yes : AutoFlag::no;
  settings.damping = published["damp"];
  settings.block_size = published["block"];
  settings.group_parameters = GroupParameters::published;
  return settings;
}

class PublishedAnswer : public testing::TestWithParam<std::string> {};

TEST_P(PublishedAnswer, IsOurs) {
  const TensorFile file(fixture);
  const Problem problem{file.read("weight"), file.read("hessian")};
  const at::Tensor published = file.read(GetParam());
  const MeasuredRows solved =
      solve(problem, settings_of(nlohmann::json::parse(file.metadata().at(GetParam()))), 2);
  const double ours = relative_error(problem, solved.linear.weight),
               theirs = relative_error(problem, published);
  EXPECT_NEAR(ours / theirs, 1, 1e-3);
  EXPECT_NEAR((solved.error.sum() / solved.reference.sum()).item<double>() / ours, 1, 1e-4);
  // Equal codes on equal scales: an entry is within a hundredth of a step.
  const at::Tensor group =
      at::arange(problem.weight.size(1), at::kLong).floor_divide(solved.linear.group_size);
  const at::Tensor steps =
      (solved.linear.weight - published).abs() / solved.linear.scale.index_select(1, group);
  const double equal = (steps < 0.5).to(at::kDouble).mean().item<double>();
  EXPECT_GE(equal, 0.995);
  RecordProperty("relative_error", std::to_string(ours));
  RecordProperty("published_relative_error", std::to_string(theirs));
  RecordProperty("codes_equal", std::to_string(equal));
}

INSTANTIATE_TEST_SUITE_P(Settings, PublishedAnswer,
                         testing::Values("gptq_w4_g64_sym", "gptq_w3_row_asym_mse",
                                         "gptq_w4_g64_sym_actorder_static",
                                         "gptq_w4_g64_asym_static", "gptq_w4_g128_asym_static"),
                         [](const auto& name) { return name.param; });

class PublishedPruning : public testing::TestWithParam<std::string> {};

MethodSettings pruning_settings(const std::string& name, const nlohmann::json& published) {
  MethodSettings settings;
  settings.name = name.starts_with("wanda") ? MethodName::wanda : MethodName::sparsegpt;
  settings.sparsity.pattern = {published["zeros"], published["of"]};
  if (settings.sparsity.pattern.of == 0) settings.sparsity.share = 0.5;
  settings.bits = published.value("bits", 16);
  settings.group_size = -1;
  settings.symmetric = false;
  settings.act_order = ActOrder::none;
  settings.group_parameters = GroupParameters::published;
  return settings;
}

TEST_P(PublishedPruning, IsOurs) {
  const TensorFile file(fixture);
  const Problem problem{file.read("weight"), file.read("hessian")};
  const at::Tensor published = file.read(GetParam());
  const MethodSettings settings =
      pruning_settings(GetParam(), nlohmann::json::parse(file.metadata().at(GetParam())));
  const MeasuredRows solved = solve(problem, settings, 2);
  const at::Tensor kept = unpack_mask(solved.linear.mask, problem.weight.size(1));
  const double ours = relative_error(problem, solved.linear.weight),
               masks = share_equal(solved.linear.weight.ne(0), published.ne(0)),
               equal = ((solved.linear.weight - published).abs() < 1e-4 * published.abs().max())
                           .to(at::kDouble)
                           .mean()
                           .item<double>();
  EXPECT_NEAR(ours / relative_error(problem, published), 1, 1e-3);
  EXPECT_GE(masks, 0.999);
  EXPECT_GE(equal, 0.995);
  EXPECT_EQ(solved.linear.codes.defined(), settings.quantises());
  EXPECT_EQ(solved.linear.weight.masked_select(kept.logical_not()).ne(0).sum().item<int64_t>(), 0);
  EXPECT_EQ(kept.to(at::kDouble).mean().item<double>(), 0.5);
  RecordProperty("masks_equal", std::to_string(masks));
  RecordProperty("entries_equal", std::to_string(equal));
  RecordProperty("relative_error", std::to_string(ours));
}

INSTANTIATE_TEST_SUITE_P(Settings, PublishedPruning,
                         testing::Values("sparsegpt_2_4", "sparsegpt_4_8",
                                         "sparsegpt_2_4_w4_row_asym", "wanda_2_4", "wanda_50_row"),
                         [](const auto& name) { return name.param; });

TEST(PublishedPruning, ThresholdOverAllRowsIsOurs) {
  const TensorFile all_rows(SELFCAL_TEST_DATA "/solvers/k_proj_all_rows.safetensors");
  const Problem problem{all_rows.read("weight").to(at::kFloat),
                        TensorFile(fixture).read("hessian")};
  const auto published = nlohmann::json::parse(all_rows.metadata().at("sparsegpt_50"));
  const MeasuredRows solved = solve(problem, pruning_settings("sparsegpt_50", published), 2);
  EXPECT_NEAR(
      relative_error(problem, solved.linear.weight) / published["relative_error"].get<double>(), 1,
      1e-3);
  EXPECT_GE(share_equal(unpack_mask(solved.linear.mask, 576),
                        unpack_mask(all_rows.read("sparsegpt_50"), 576)),
            0.999);
}

/// Of a bfloat16 model, errors go from block to block in whole numbers. In one block there are no
/// such products, and what GPTQ and n:m pruning come to does not depend on the blocks otherwise.
class PublishedSettingsInBfloat16 : public testing::TestWithParam<std::string> {};

TEST_P(PublishedSettingsInBfloat16, WholeNumbersBetweenBlocksComeToTheSame) {
  const TensorFile file(fixture),
      all_rows(SELFCAL_TEST_DATA "/solvers/k_proj_all_rows.safetensors");
  const Problem problem{all_rows.read("weight").to(at::kFloat), file.read("hessian")};
  const auto published = nlohmann::json::parse(file.metadata().at(GetParam()));
  MethodSettings settings = GetParam().starts_with("gptq")
                                ? settings_of(published)
                                : pruning_settings(GetParam(), published);
  settings.group_parameters = GroupParameters::current;  // the published ones depend on the blocks
  const MeasuredRows blocks = solve(problem, settings, 2, at::kBFloat16);
  settings.block_size = 576;
  const MeasuredRows one = solve(problem, settings, 2, at::kBFloat16);
  const double ratio =
      relative_error(problem, blocks.linear.weight) / relative_error(problem, one.linear.weight);
  // Scales that are found on the way differ too.
  const bool found_on_the_way = settings.group_size > 0 && settings.act_order == ActOrder::none &&
                                settings.static_groups == AutoFlag::no;
  EXPECT_NEAR(ratio, 1, found_on_the_way ? 2e-3 : 1e-3);
  if (settings.quantises()) {
    const auto codes = [](const MeasuredRows& solved) {
      return unpack_codes(solved.linear.codes, solved.linear.bits, 576);
    };
    EXPECT_GE(share_equal(codes(blocks), codes(one)), found_on_the_way ? 0.99 : 0.995);
  } else {  // a weight half-way between two of bfloat16 may go either way
    const at::Tensor near = 0x1p-7 * one.linear.weight.to(at::kFloat).abs(),
                     apart = (blocks.linear.weight.to(at::kFloat) - one.linear.weight).abs();
    EXPECT_GE(apart.le(near).to(at::kDouble).mean().item<double>(), 0.995);
  }
  if (settings.prunes()) {
    const auto mask = [](const MeasuredRows& solved) {
      return unpack_mask(solved.linear.mask, 576);
    };
    EXPECT_GE(share_equal(mask(blocks), mask(one)), 0.999);
  }
  // Weights rounded to bfloat16 on the way are no worse than the published code's.
  const double in_float = relative_error(problem, solve(problem, settings, 2).linear.weight);
  EXPECT_NEAR(relative_error(problem, blocks.linear.weight) / in_float, 1, 1e-2);
  RecordProperty("ratio_to_one_block", std::to_string(ratio));
}

INSTANTIATE_TEST_SUITE_P(Settings, PublishedSettingsInBfloat16,
                         testing::Values("gptq_w4_g64_sym", "gptq_w3_row_asym_mse",
                                         "gptq_w4_g64_sym_actorder_static",
                                         "gptq_w4_g64_asym_static", "sparsegpt_2_4",
                                         "sparsegpt_4_8", "sparsegpt_2_4_w4_row_asym"),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace selfcal
