// Outlier-weighed layerwise sparsity (OWL; Yin et al., "Outlier weighed layerwise sparsity: a
// missing secret sauce for pruning LLMs to high sparsity", 2024): blocks with more outliers keep
// more of their weights.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace selfcal {

/// Sum of |weight| * norm, Wanda's scores. weight: [rows, columns], float32 or bfloat16, contiguous
/// rows; norms: float32 [columns]. Summed in float64 in one order.
double sum_of_scores(const at::Tensor& weight, const at::Tensor& norms);
/// Scores above the threshold.
int64_t scores_above(const at::Tensor& weight, const at::Tensor& norms, double threshold);

/// Of a block's layers that take part.
struct OutlierCount {
  int64_t outliers = 0;  // scores above m times the block's mean score
  int64_t entries = 0;
  double ratio() const { return entries > 0 ? double(outliers) / double(entries) : 0; }
  bool operator==(const OutlierCount&) const = default;
};

/// The share of zeros of each block: falls linearly with its ratio of outliers, over a range of
/// 2 lambda, and the mean over all entries is `target` (published: the mean over the blocks, the
/// same where they are equally large). Blocks without entries have the target.
std::vector<double> owl_sparsity(const std::vector<OutlierCount>& blocks, double target,
                                 double lambda);

}  // namespace selfcal
