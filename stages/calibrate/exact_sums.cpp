#include "stages/calibrate/exact_sums.hpp"

#include <algorithm>
#include <cmath>

namespace selfcal {
namespace {

constexpr int unit_bits_of_sums = 45;           // of a leaf's largest number, as an integer
constexpr int32_t exponent_of_zero = -1 << 11;  // below that of any float64

}  // namespace

ExactSums::ExactSums(int64_t entries)
    : exponents_(static_cast<size_t>(entries), exponent_of_zero),
      sums_(static_cast<size_t>(entries)) {}

void ExactSums::add(std::vector<double> leaf) {
  for (size_t i = 0; i < leaf.size(); ++i) {
    if (leaf[i] == 0) continue;
    int exponent = 0;
    std::frexp(leaf[i], &exponent);
    exponents_[i] = std::max<int32_t>(exponents_[i], exponent);
  }
  leaves_.push_back(std::move(leaf));
}

void ExactSums::count() {
  for (const auto& leaf : leaves_)
    for (size_t i = 0; i < leaf.size(); ++i)
      sums_[i] += std::llrint(std::ldexp(leaf[i], unit_bits_of_sums - exponents_[i]));
  leaves_.clear();
}

double ExactSums::at(int64_t entry) const {
  const auto i = static_cast<size_t>(entry);
  return std::ldexp(static_cast<double>(sums_[i]), exponents_[i] - unit_bits_of_sums);
}

}  // namespace selfcal
