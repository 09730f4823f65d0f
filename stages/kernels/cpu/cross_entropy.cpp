#include <ATen/ATen.h>

#include <cmath>

#include "stages/kernels/cpu/cpu_operations.hpp"
#include "stages/kernels/cpu/matrix.hpp"

namespace selfcal::kernels {

at::Tensor cpu::cross_entropy(const Context& context, const at::Tensor& logits,
                              const at::Tensor& targets) {
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  require(logits.is_contiguous() && logits.scalar_type() == at::kFloat && targets.is_contiguous() &&
              targets.numel() == rows,
          "cross_entropy: {} rows of logits for {} targets", rows, targets.numel());
  at::Tensor losses = at::empty({rows}, at::kFloat);
  const float* data = logits.const_data_ptr<float>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  float* loss = losses.mutable_data_ptr<float>();
  const int64_t blocks = ceil_divide(vocabulary, exponential_block);
  for_tiles(context, rows, [&](int64_t row) {
    require(target[row] >= 0 && target[row] < vocabulary, "cross_entropy: target {} of {}",
            target[row], vocabulary);
    static thread_local Scratch weights;
    std::vector<double> sums(static_cast<size_t>(blocks));
    const float* scores = data + row * vocabulary;
    const float largest = vector_kernels().maximum(scores, vocabulary);
    vector_kernels().exponentials(scores, vocabulary, largest, 1, weights.floats(vocabulary),
                                  sums.data());
    double sum = largest == largest ? 0 : NAN;
    for (const double block : sums) sum += block;
    loss[row] =
        static_cast<float>(std::log(sum) - (static_cast<double>(scores[target[row]]) - largest));
  });
  return losses;
}

}  // namespace selfcal::kernels
