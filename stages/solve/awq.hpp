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

/// The weight that the candidate s leaves to the input as it is, round(w s) / s: of the weight's
/// dtype and shape [rows, columns].
at::Tensor rounded_behind(const at::Tensor& weight, const at::Tensor& scale,
                          const MethodSettings& settings, const kernels::Context& context);

/// Loss of each candidate, float64 [candidates], over every `step`-th part of what there is to look
/// at.
using LossesOf = std::function<at::Tensor(const at::Tensor& scales, int64_t step)>;

/// The candidate of the least loss over all parts, of equal ones the first. With a step above 1 all
/// candidates are tried on every step-th part, and on all of them those that do best there.
///
/// The published code compares outputs of a whole module where several layers read the input (q, k,
/// v: attention; gate, up: the MLP), and those of the layer itself where one does. For one layer
/// that is mean |(W' - W) x|^2 = tr(E H E^T), which losses_of_scales() finds by rows and over all
/// tokens.
at::Tensor search_scale(const at::Tensor& candidates, int64_t step, const LossesOf& losses);

/// What part of the rows a sample of matrices may be: every eighth row at the most, and no fewer
/// of any matrix than fill two tiles.
int64_t row_step(const std::vector<at::Tensor>& weights);

/// Of x / scale, given that of x: D^-1 H D^-1, exactly symmetric.
at::Tensor hessian_of_scaled(const at::Tensor& hessian, const at::Tensor& scale);

/// Moves the scale [columns] from the producer (its weight and bias divided by it) into its
/// consumers (multiplied by it); what the block computes stays the same but for the rounding of the
/// weights. Of a producer with more rows than the scale has entries, the last rows count.
void fold_scale(BlockWeights& weights, const ScalePair& pair, const at::Tensor& scale);

/// Names within the block of the tensors that fold_scale rewrites.
std::vector<std::string> folded_tensors(const BlockWeights& weights, const ScalePair& pair);

}  // namespace selfcal
