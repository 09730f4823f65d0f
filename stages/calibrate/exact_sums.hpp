// Sums over the leaves of a calibration set with the same bits for any dealing of leaves to ranks
// and any order: of numbers that a leaf has few of.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace selfcal {

/// add() every leaf, once; all_reduce(max) exponents(); count(); all_reduce(sum) sums(); at().
/// With 2^h_i above the size of entry i in any leaf, each is rounded to a unit of 2^(h_i - 45):
/// 2^17 leaves fit in 63 bits.
class ExactSums {
 public:
  explicit ExactSums(int64_t entries);

  /// A leaf's numbers, finite, one an entry.
  void add(std::vector<double> leaf);
  std::span<int32_t> exponents() { return exponents_; }
  /// Turns the leaves' numbers into whole ones, once the exponents are those of all ranks.
  void count();
  std::span<int64_t> sums() { return sums_; }
  /// The sum of an entry over all leaves of all ranks.
  double at(int64_t entry) const;

 private:
  std::vector<std::vector<double>> leaves_;
  std::vector<int32_t> exponents_;
  std::vector<int64_t> sums_;
};

}  // namespace selfcal
