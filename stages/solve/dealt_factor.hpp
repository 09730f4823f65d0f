// The factor of a wide Hessian by many ranks: rows of tiles of its Cholesky factor, then strips of
// columns of the triangular inverse. With the bits of factorise_inverse().
#pragma once
#include <optional>
#include <span>
#include <vector>

#include "stages/solve/factor.hpp"

namespace selfcal {

/// One rank's part.
class DealtFactor {
 public:
  /// hessian: the same on all ranks, as for factorise_inverse(), in the host's memory. Independent;
  /// not finite: ExitCode::data, on all.
  DealtFactor(const at::Tensor& hessian, const MethodSettings& settings, FactorTeam team,
              const kernels::Context& context);

  /// Finds the Cholesky factor. False on all ranks where that takes more than one attempt in
  /// float32, which is then for factorise_inverse(). Collective over the team.
  bool factorise();

  /// Strips of U, one after the other, each down to the diagonal, by rank: this rank's are found,
  /// the others have room. Then the Cholesky factor is gone. Independent.
  std::vector<std::span<std::byte>> invert();

  /// The factor from all ranks' strips; nothing where it is not finite. Independent.
  std::optional<Factor> join();

 private:
  int64_t columns() const { return damped_.factor.permutation.numel(); }

  FactorTeam team_;
  kernels::Context context_;
  DampedHessian damped_;
  std::optional<Cholesky<float>> cholesky_;
  at::Tensor strips_;  // of all ranks
};

}  // namespace selfcal
