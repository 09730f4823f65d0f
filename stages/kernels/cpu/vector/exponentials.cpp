// Weights of a distribution from its logits.
#include "stages/kernels/cpu/vector/kernels.hpp"
#include "stages/kernels/cpu/vector/vector.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {

float maximum(const float* values, int64_t count) {
  Floats largest = all(values[0]);
  Integers ordered = bits<Integers>(largest == largest);
  int64_t i = 0;
  for (; i + width <= count; i += width) {
    const Floats next = read<Floats>(values + i);
    largest = next > largest ? next : largest;
    ordered &= next == next;
  }
  float result = largest[0];
  for (int lane = 0; lane < width; ++lane) {
    if (!ordered[lane]) return __builtin_nanf("");
    if (largest[lane] > result) result = largest[lane];
  }
  for (; i < count; ++i) {
    if (values[i] != values[i]) return values[i];
    if (values[i] > result) result = values[i];
  }
  return result;
}

void exponentials(const float* values, int64_t count, float shift, float scale, float* result,
                  double* block_sums) {
  using Doubles = double __attribute__((vector_size(2 * SELFCAL_VECTOR_BYTES)));
  for (int64_t block = 0; block < count; block += exponential_block) {
    const int64_t end = block + exponential_block < count ? block + exponential_block : count;
    Doubles sums = {};
    int64_t i = block;
    for (; i + width <= end; i += width) {
      const Floats weights = exponential((read<Floats>(values + i) - shift) * scale);
      write(result + i, weights);
      sums += __builtin_convertvector(weights, Doubles);
    }
    if (i < end) {
      Floats last = all(-__builtin_inff());
      std::memcpy(&last, values + i, (end - i) * sizeof(float));
      last = exponential((last - shift) * scale);
      std::memcpy(result + i, &last, (end - i) * sizeof(float));
      sums += __builtin_convertvector(last, Doubles);
    }
    double sum = 0;
    for (int lane = 0; lane < width; ++lane) sum += sums[lane];
    block_sums[block / exponential_block] = sum;
  }
}

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
