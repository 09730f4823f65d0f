#include "pipeline/embedding.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "pipeline/tensor_message.hpp"
#include "pipeline/timed_agreement.hpp"

namespace selfcal {
namespace {

/// Rows of the table of words, in the order of the words, of those that occur.
class KnownWords {
 public:
  KnownWords(const Model& model, int64_t width, const std::vector<at::Tensor>& tokens)
      : model_(model) {
    std::vector<at::Tensor> all{at::empty({0}, at::kLong)};
    for (const auto& leaf : tokens) all.push_back(leaf.reshape({-1}).to(at::kLong));
    words_ = std::get<0>(at::_unique(at::cat(all)));
    check_range(words_, model.shape().vocabulary, "token ids");
    rows_ = at::empty({words_.numel(), width}, model.shape().compute_dtype);
  }

  /// `run`: rows of the table from `first` on.
  void keep(const at::Tensor& run, int64_t first) {
    const int64_t begin = place_of(first), end = place_of(first + run.size(0));
    at::Tensor kept = rows_.narrow(0, begin, end - begin);
    at::index_select_out(kept, run, 0, words_.narrow(0, begin, end - begin) - first);
  }

  /// When all of the table has passed by.
  std::vector<at::Tensor> embed(const std::vector<at::Tensor>& tokens) const {
    std::vector<at::Tensor> hidden;
    if (tokens.empty()) return hidden;
    OuterWeights outer = model_.read_outer({.head = false, .words = false});
    outer[model_.word_table()] = rows_.to(model_.device().memory);
    for (const auto& leaf : tokens)
      hidden.push_back(model_.embed(at::searchsorted(words_, leaf.to(at::kLong)), outer));
    return hidden;
  }

 private:
  int64_t place_of(int64_t first) const {
    const int64_t* words = words_.const_data_ptr<int64_t>();
    return std::lower_bound(words, words + words_.numel(), first) - words;
  }

  const Model& model_;
  at::Tensor words_;
  at::Tensor rows_;
};

}  // namespace

std::vector<at::Tensor> rows_of(const at::Tensor& tokens, const std::vector<Leaf>& leaves) {
  std::vector<at::Tensor> rows;
  for (const auto& leaf : leaves) rows.push_back(tokens.narrow(0, leaf.first, leaf.rows));
  return rows;
}

std::vector<at::Tensor> embed_together(const Communicator& ranks, const Model& model,
                                       PhaseTimer& timer, const std::vector<at::Tensor>& tokens,
                                       int64_t at_once) {
  const auto scope = timer.measure(Phase::read);
  const auto table = model.outer_parameters().at(model.word_table());
  const int64_t words = table[0], width = table[1];
  const auto row_bytes = width * static_cast<int64_t>(at::elementSize(model.shape().compute_dtype));
  const int64_t run_rows = std::max<int64_t>(1, at_once / row_bytes);
  std::optional<KnownWords> known;
  agree(ranks, timer, [&] { known.emplace(model, width, tokens); });
  for (int64_t first = 0; first < words; first += run_rows) {
    const int64_t count = std::min(run_rows, words - first);
    at::Tensor run;
    agree(ranks, timer, [&] {
      run = ranks.rank() == 0 ? model.read_words(first, count)
                              : at::empty({count, width}, model.shape().compute_dtype);
    });
    ranks.broadcast(bytes_of(run), 0);
    known->keep(run, first);
  }
  std::vector<at::Tensor> hidden;
  agree(ranks, timer, [&] { hidden = known->embed(tokens); });
  return hidden;
}

}  // namespace selfcal
