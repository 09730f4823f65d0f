#include "pipeline/solve_pace.hpp"

#include <algorithm>
#include <cmath>

namespace selfcal {
namespace {

constexpr double remembered = 0.9;  // of what was known, each time that ranks share
constexpr double most = 8;          // from 1, either way: what a first call's noise may do

}  // namespace

void SolvePace::note(size_t kind, double cost, double seconds) {
  noted_[kind] += std::llround(cost);
  noted_[kind + 1] += std::llround(seconds * 1e9);
}

void SolvePace::share(const Communicator& team) {
  if (team.size() == 1) return;
  team.all_reduce(std::span(noted_), ReduceOp::sum);
  for (size_t i = 0; i < known_.size(); ++i)
    known_[i] = remembered * known_[i] + static_cast<double>(noted_[i]);
  noted_ = {};
  const auto& [factor_cost, factor_time, control_cost, control_time] = known_;
  if (std::ranges::any_of(known_, [](double value) { return value < 1; })) return;
  ratio_ = std::clamp(factor_time / factor_cost * control_cost / control_time, 1 / most, most);
}

}  // namespace selfcal
