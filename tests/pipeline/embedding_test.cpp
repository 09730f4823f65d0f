// Embeddings by a table that passes by in runs have the bits of those by the whole table.
#include "pipeline/embedding.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "comm/agreement.hpp"

namespace selfcal {
namespace {

class Embeddings : public testing::TestWithParam<const char*> {
 protected:
  static std::unique_ptr<Model> open(const char* name, kernels::Context context) {
    return open_model(fs::path(SELFCAL_TEST_DATA) / "models" / name, "auto", context);
  }
  /// As many leaves as the number of the rank, the last one of another length.
  std::vector<at::Tensor> tokens() const {
    at::manual_seed(team.rank());
    std::vector<at::Tensor> leaves;
    for (int64_t i = 0; i < team.rank(); ++i)
      leaves.push_back(at::randint(model->shape().vocabulary, {2, i == 0 ? 5 : 7}, at::kInt));
    if (team.size() == 1) leaves.push_back(at::arange(model->shape().vocabulary).view({-1, 1}));
    return leaves;
  }

  const Communicator team = Communicator::world();
  PhaseTimer timer;
  ThreadPool pool{1, kernels::use_one_library_thread};
  std::unique_ptr<Model> model = open(GetParam(), {&pool, {}});
};

TEST_P(Embeddings, AreThoseOfTheWholeTable) {
  const OuterWeights outer = model->read_outer();
  const int64_t table = outer.at(model->word_table()).nbytes();
  for (const int64_t at_once : {int64_t{1}, table / 3, table - 1, table, 2 * table}) {
    const auto leaves = tokens();
    const auto hidden = embed_together(team, *model, timer, leaves, at_once);
    ASSERT_EQ(hidden.size(), leaves.size());
    for (size_t i = 0; i < leaves.size(); ++i)
      EXPECT_TRUE(at::equal(hidden[i], model->embed(leaves[i], outer))) << at_once << " " << i;
  }
}

TEST_P(Embeddings, UnknownWordsAreAnErrorOnAllRanks) {
  for (const int64_t word : {int64_t{-1}, model->shape().vocabulary}) {
    auto leaves = tokens();
    if (team.rank() + 1 == team.size()) leaves.push_back(at::full({1, 2}, word, at::kLong));
    try {
      embed_together(team, *model, timer, leaves);
      FAIL() << "expected an error";
    } catch (const AgreedError& error) {
      EXPECT_EQ(error.code(), ExitCode::data);
      EXPECT_NE(std::string(error.what()).find("expected 0 to "), std::string::npos);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Embeddings,
                         testing::Values("tied-bf16", "llama3", "gemma", "opt", "opt-350m"));

}  // namespace
}  // namespace selfcal
