// Pruners, small enough for tests.
#pragma once
#include "storage/packing.hpp"
#include "tests/stages/solve_support.hpp"

namespace selfcal::testing_support {

inline MethodSettings pruner(MethodName name, const Sparsity& sparsity,
                             int bits = unquantised_bits) {
  MethodSettings settings;
  settings.name = name;
  settings.sparsity = sparsity;
  settings.bits = bits;
  settings.group_size = 16;
  settings.block_size = 32;
  settings.act_order = ActOrder::none;
  return settings;
}

inline at::Tensor mask_of(const SolvedRows& solved) {
  return unpack_mask(solved.linear.mask, solved.linear.weight.size(1));
}

}  // namespace selfcal::testing_support
