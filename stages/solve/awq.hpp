// AWQ (Lin et al., "AWQ: activation-aware weight quantization for LLM compression and
// acceleration", 2024): inputs that matter are scaled down in the operation before and up in the
// weights that read them, so that rounding spares them.
#pragma once
#include <functional>
#include <map>
#include <string>

#include "stages/model/block.hpp"
#include "stages/solve/method.hpp"

namespace selfcal {

/// Scales to choose from: float32 [candidates, columns], the first all ones. weights: those that
/// read the input, [rows, columns] each; magnitude: mean |x|, float32 [columns]. With x^r and, for
/// duo scaling, the weights' mean size w relative to their group: x^r / w^(1 - r), r = 0, 1/20 ..
/// 19/20, each divided by the geometric mean of its extremes.
at::Tensor candidate_scales(const std::vector<at::Tensor>& weights, const at::Tensor& magnitude,
                            const MethodSettings& settings);

/// What each candidate s does to each row: e H e^T with e = round(w s) / s - w, float64
/// [rows, candidates]. hessian: of the input as it is, float32 [columns, columns]. Rows are
/// independent.
at::Tensor losses_of_scales(const at::Tensor& weight, const at::Tensor& hessian,
                            const at::Tensor& scales, const MethodSettings& settings,
                            const kernels::Context& context);

/// Loss of each candidate, float64 [candidates], over the rows 0, row_step, 2 row_step ... of every
/// matrix that reads the input.
using LossesOf = std::function<at::Tensor(const at::Tensor& scales, int64_t row_step)>;

/// The candidate of the least loss over all rows, of equal ones the first. In large matrices all
/// candidates are tried on a sample of the rows, those that do best there on all of them. rows: of
/// the smallest matrix.
///
/// The published code compares outputs of a whole module where several layers read the input (q, k,
/// v: attention; gate, up: the MLP), and those of the layer itself where one does. The loss here is
/// that of the layers' own outputs: for one layer the same, mean |(W' - W) x|^2 = tr(E H E^T), over
/// all tokens and not a sample of them.
at::Tensor search_scale(const at::Tensor& candidates, int64_t rows, const LossesOf& losses);

/// Rows of the smallest matrix.
int64_t rows_of(const std::vector<at::Tensor>& weights);

/// Of x / scale, given that of x: D^-1 H D^-1, exactly symmetric.
at::Tensor hessian_of_scaled(const at::Tensor& hessian, const at::Tensor& scale);

/// Moves the scale [columns] from the producer (its weight and bias divided by it) into its
/// consumers (multiplied by it); what the block computes stays the same but for the rounding of the
/// weights. Of a producer with more rows than the scale has entries, the last rows count.
void fold_scale(BlockWeights& weights, const ScalePair& pair, const at::Tensor& scale);

/// Names within the block of the tensors that fold_scale rewrites.
std::vector<std::string> folded_tensors(const BlockWeights& weights, const ScalePair& pair);

}  // namespace selfcal
