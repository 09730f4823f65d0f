// One statistics group solved by a team: one rank factorises, all ranks solve rows, all ranks get
// the result.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "pipeline/phase_timer.hpp"
#include "pipeline/tap_statistics.hpp"

namespace selfcal {

/// A linear layer to solve.
struct LinearProblem {
  std::string name;
  at::Tensor weight;  // [rows, columns], in any memory
  MethodSettings settings;
};

/// The factors of one Hessian that are asked for again: by jobs of equal settings.
class SharedFactors {
 public:
  /// One more use is to come.
  void expect(const FactorSettings& settings) { ++kept_[settings].uses; }
  /// Whether get() need not find it.
  bool has(const FactorSettings& settings) const {
    const auto kept = kept_.find(settings);
    return kept != kept_.end() && kept->second.factor.has_value();
  }
  /// The factor, found by `find` if it is not kept, and kept while more uses are to come.
  Factor get(const FactorSettings& settings, const std::function<Factor()>& find);

 private:
  struct Kept {
    int uses = 0;
    std::optional<Factor> factor = {};
  };
  std::map<FactorSettings, Kept> kept_;
};

/// Settings of the factors that the problems of one Hessian need.
std::set<FactorSettings> factors_of(const std::vector<LinearProblem>& problems);

/// Collective over `team`; every rank gives the same problems and statistics of their input, and
/// gets the same result. Matrices that share a factor are stacked before their row tiles are dealt,
/// so that no rank waits for a narrow one. While one rank computes the factor, the others measure
/// their rows' controls, and they get more of the rows. `shared`: of this input, the same on every
/// rank; each of factors_of(problems) is then one use.
std::map<std::string, CompressedLinear> solve_together(const Communicator& team,
                                                       const std::vector<LinearProblem>& problems,
                                                       const TapStatistics& statistics,
                                                       PhaseTimer& timer, kernels::Context context,
                                                       SharedFactors* shared = nullptr);

}  // namespace selfcal
