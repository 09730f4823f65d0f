#include <ATen/ATen.h>

#include <cmath>

#include "stages/kernels/cpu/loops.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal::kernels {

at::Tensor cross_entropy(const Context& context, const at::Tensor& logits,
                         const at::Tensor& targets) {
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  require(logits.is_contiguous() && logits.scalar_type() == at::kFloat && targets.is_contiguous() &&
              targets.numel() == rows,
          "cross_entropy: {} rows of logits for {} targets", rows, targets.numel());
  at::Tensor losses = at::empty({rows}, at::kFloat);
  const float* data = logits.const_data_ptr<float>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  float* loss = losses.mutable_data_ptr<float>();
  for_tiles(context, rows, [&](int64_t row) {
    require(target[row] >= 0 && target[row] < vocabulary, "cross_entropy: target {} of {}",
            target[row], vocabulary);
    static thread_local Scratch scratch;
    const float* scores = data + row * vocabulary;
    float* copy = scratch.floats(vocabulary);
    std::copy_n(scores, vocabulary, copy);
    const float largest = maximum(scores, vocabulary);
    loss[row] = std::log(exponentials(copy, vocabulary, largest)) - (scores[target[row]] - largest);
  });
  return losses;
}

}  // namespace selfcal::kernels
