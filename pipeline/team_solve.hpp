// Layers of a block solved by a team: factors by different ranks, rows by all ranks, and all ranks
// get the result.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "pipeline/phase_timer.hpp"
#include "pipeline/solve_pace.hpp"
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

/// Who solves, and with what; borrowed.
struct SolvingTeam {
  const Communicator& ranks;
  PhaseTimer& timer;
  SolvePace& pace;
  kernels::Context context;
};

/// The layers to solve, by the input that they read.
using TapProblems = std::map<int, std::vector<LinearProblem>>;

/// Settings of the factors that the problems of one Hessian need.
std::set<FactorSettings> factors_of(const std::vector<LinearProblem>& problems);

/// Collective over the team; every rank gives the same problems and statistics of their inputs, and
/// gets the same result. Factors are found at the same time, one a rank (the last ranks first), as
/// many as there are ranks; meanwhile the controls of all rows are measured, by each rank as many
/// as its factor leaves it time for. Then, group after group, a factor goes to all ranks and the
/// rows of the layers that it is for, stacked so that no rank waits for a narrow one, are dealt in
/// tiles. `shared`: by input, the same on every rank; each of factors_of() is then one use.
/// `between` is called after each group.
std::map<std::string, CompressedLinear> solve_together(
    const SolvingTeam& team, const TapProblems& problems,
    const std::map<int, TapStatistics>& statistics, std::map<int, SharedFactors>& shared,
    const std::function<void()>& between);

}  // namespace selfcal
