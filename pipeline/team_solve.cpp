#include "pipeline/team_solve.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <span>
#include <tuple>
#include <utility>

#include "pipeline/factor_exchange.hpp"
#include "pipeline/row_dealing.hpp"
#include "pipeline/tensor_exchange.hpp"
#include "pipeline/timed_agreement.hpp"

namespace selfcal {
namespace {

using Tensors = std::map<std::string, at::Tensor>;
/// What ranks found of a layer's rows: by field and first row.
using Parts = std::map<std::string, std::map<int64_t, at::Tensor>>;

/// Layers that are solved with one factor, or with none, and measured on the same statistics.
struct Group {
  int tap = 0;
  FactorSettings wanted;
  std::vector<const LinearProblem*> problems;
  at::Tensor hessian;  // or its diagonal
  int owner = -1;      // the rank that finds the factor, where one does and it is not there yet
  Factor factor = {};

  const MethodSettings& settings() const { return problems.front()->settings; }
  double columns() const { return static_cast<double>(hessian.size(0)); }
};

std::vector<Group> groups_of(const TapProblems& problems,
                             const std::map<int, TapStatistics>& statistics) {
  // By input, by factor, and by what of the input's statistics the layers need.
  std::map<std::tuple<int, FactorSettings, bool>, std::vector<const LinearProblem*>> grouped;
  for (const auto& [tap, of_tap] : problems)
    for (const auto& problem : of_tap)
      grouped[{tap, factor_settings(problem.settings), needs_products(problem.settings)}].push_back(
          &problem);
  std::vector<Group> groups;
  for (const auto& [key, stacked] : grouped) {
    const int tap = std::get<int>(key);
    groups.push_back({tap, std::get<FactorSettings>(key), stacked,
                      statistics.at(tap).of(stacked.front()->settings)});
  }
  return groups;
}

Tensors to_tensors(const SolvedRows& solved) {
  const CompressedLinear& linear = solved.linear;
  return {{"weight", linear.weight}, {"codes", linear.codes}, {"scale", linear.scale},
          {"zero", linear.zero},     {"g_idx", linear.g_idx}, {"mask", linear.mask},
          {"error", solved.error}};
}

Tensors to_tensors(const RowControls& controls) {
  return {{"nearest", controls.nearest_error}, {"reference", controls.reference}};
}

/// Share of the weights whose bit in the mask is 0.
double pruned_share(const CompressedLinear& linear) {
  if (!linear.mask.defined()) return 0;
  int64_t kept = 0;
  const auto* bytes = linear.mask.const_data_ptr<uint8_t>();
  for (int64_t i = 0; i < linear.mask.numel(); ++i) kept += std::popcount(bytes[i]);
  return 1 - static_cast<double>(kept) / static_cast<double>(linear.weight.numel());
}

/// A layer's rows from all its runs, put together in row order.
CompressedLinear assemble(const Parts& parts, const Factor& factor,
                          const MethodSettings& settings) {
  const auto joined = [&](const char* field) -> at::Tensor {
    const auto found = parts.find(field);
    if (found == parts.end()) return {};
    std::vector<at::Tensor> rows;
    for (const auto& [first, part] : found->second) rows.push_back(part);
    return at::cat(rows);
  };
  CompressedLinear linear;
  linear.weight = joined("weight");
  linear.codes = joined("codes");
  linear.scale = joined("scale");
  linear.zero = joined("zero");
  linear.mask = joined("mask");
  if (parts.contains("g_idx")) linear.g_idx = parts.at("g_idx").begin()->second;
  if (linear.codes.defined()) {
    linear.bits = settings.bits;
    linear.group_size = settings.group_size < 0 ? linear.weight.size(1) : settings.group_size;
    linear.symmetric = settings.symmetric;
  }
  // Summed in row order, so that the figures do not depend on who solved which rows.
  const double reference = joined("reference").sum().item<double>();
  const double error = joined("error").sum().item<double>();
  linear.loss = error;
  linear.relative_error = reference > 0 ? error / reference : 0;
  linear.nearest_error = reference > 0 ? joined("nearest").sum().item<double>() / reference : 0;
  linear.sparsity = pruned_share(linear);
  linear.damping = factor.damping;
  linear.damping_retries = factor.retries;
  linear.dead_columns = factor.dead.defined() ? factor.dead.sum().item<int64_t>() : 0;
  return linear;
}

/// A team at work on the groups of a block.
class TeamSolve {
 public:
  TeamSolve(const SolvingTeam& team, std::map<int, SharedFactors>& shared)
      : team_(team.ranks),
        timer_(team.timer),
        pace_(team.pace),
        context_(team.context),
        shared_(shared) {}

  /// The first of `groups`, with as many factors to find as there are ranks at most: one a rank
  /// needs no more memory than finding one does.
  std::span<Group> next_round(std::span<Group> groups) const {
    size_t count = 0;
    for (int factors = 0; count < groups.size(); ++count)
      if (needs_owner(groups[count]) && ++factors > team_.size()) break;
    return groups.first(count);
  }

  /// Factors of the groups, each by a rank of its own; who has none to find, or a narrow one,
  /// measures more of the controls. Collective.
  void begin(std::span<Group> round) {
    const std::vector<double> loads = assign_factors(round);
    std::vector<RowsToDeal> rows;
    std::vector<std::pair<const Group*, const LinearProblem*>> problems;
    for (const auto& group : round)
      for (const auto* problem : group.problems) {
        rows.push_back(rows_of(*problem, problems.size()));
        problems.emplace_back(&group, problem);
      }
    const auto runs = deal_rows(rows, loads);
    const PhaseSeconds before = timer_.seconds();
    double factors = 0, controls = 0;
    agree(team_, timer_, [&] {
      for (auto& group : round) factors += find_factor(group);
      const auto scope = timer_.measure(Phase::solve);
      for (const auto& run : runs)
        if (run.owner == team_.rank()) {
          measure_controls(*problems[run.problem].first, *problems[run.problem].second, run);
          controls += static_cast<double>(run.rows) * rows[run.problem].row_cost;
        }
    });
    learn_pace(factors, controls, before);
  }

  /// The layers of a group that has begun. Collective.
  std::map<std::string, CompressedLinear> finish(Group& group) {
    const Factor factor =
        group.wanted.inverts
            ? shared_[group.tap].get(group.wanted, [&] { return share_factor(group); })
            : group.factor;
    group.factor = {};
    {
      const auto scope = timer_.measure(Phase::solve);
      solve(group, factor);
    }
    const auto scope = timer_.measure(Phase::gather);
    gather();
    std::map<std::string, CompressedLinear> solved;
    for (const auto* problem : group.problems) {
      solved[problem->name] = assemble(parts_.at(problem->name), factor, problem->settings);
      parts_.erase(problem->name);
    }
    return solved;
  }

 private:
  at::Device memory_of(const Group& group) const {
    return make_method(group.settings(), context_)->memory();
  }

  /// Where the group is solved.
  at::Tensor near_hessian(const Group& group) const { return group.hessian.to(memory_of(group)); }

  bool lacks_factor(const Group& group) const {
    const auto shared = shared_.find(group.tap);
    return group.wanted.inverts && (shared == shared_.end() || !shared->second.has(group.wanted));
  }

  /// Whether one rank finds it, beside the controls of the others: all of them find a wide one.
  bool needs_owner(const Group& group) const { return lacks_factor(group) && !is_dealt(group); }
  bool is_dealt(const Group& group) const {
    return team_.size() > 1 && group.columns() >= narrowest_dealt_factor &&
           !context_.device.uses_library();
  }

  /// The widest to the last rank, and so on: the first rank reads and writes as well. What each
  /// rank then has to do, in units of a product of a row's control.
  std::vector<double> assign_factors(std::span<Group> round) const {
    std::vector<Group*> lacking;
    for (auto& group : round)
      if (needs_owner(group)) lacking.push_back(&group);
    std::ranges::stable_sort(lacking, std::greater(), &Group::columns);
    std::vector<double> loads(static_cast<size_t>(team_.size()), 0.0);
    int owner = team_.size();
    for (Group* group : lacking) {
      group->owner = --owner;
      loads[static_cast<size_t>(owner)] = factor_cost(*group) * pace_.controls_a_factor();
    }
    return loads;
  }

  /// About that of as many products of controls.
  static double factor_cost(const Group& group) { return std::pow(group.columns(), 3) / 2; }

  /// In the same units: both controls of a row are x H x^T.
  RowsToDeal rows_of(const LinearProblem& problem, size_t index) const {
    return {index, problem.weight.size(0), make_method(problem.settings, context_)->row_tile(),
            std::pow(static_cast<double>(problem.weight.size(1)), 2)};
  }

  /// Where it is this rank's to find; returns what it cost.
  double find_factor(Group& group) const {
    if (group.wanted.inverts && group.owner != team_.rank()) return 0;
    find_whole(group);
    return group.wanted.inverts ? factor_cost(group) : 0;
  }

  /// Of work that has taken the seconds since `before`. Collective.
  void learn_pace(double factors, double controls, const PhaseSeconds& before) const {
    // A GPU is still at work when its calls return: nothing is learned there.
    if (context_.device.uses_library()) return;
    const PhaseSeconds now = timer_.seconds();
    const auto spent = [&](Phase phase) {
      return now[static_cast<size_t>(phase)] - before[static_cast<size_t>(phase)];
    };
    pace_.note_factors(factors, spent(Phase::factorise));
    pace_.note_controls(controls, spent(Phase::solve));
    pace_.share(team_);
  }

  void find_whole(Group& group) const {
    const auto scope = timer_.measure(Phase::factorise);
    at_place(group.problems.front()->name, [&] {
      group.factor = make_method(group.settings(), context_)->factorise(group.hessian);
    });
  }

  /// What the owner has found, or all find, on all ranks. Collective.
  Factor share_factor(Group& group) const {
    const auto scope = timer_.measure(Phase::gather);
    if (is_dealt(group)) {
      if (auto found = factorise_together(team_, group.hessian, group.settings(),
                                          group.problems.front()->name, timer_, context_))
        return *std::move(found);
      // One attempt was not enough: one rank makes the others.
      group.owner = team_.size() - 1;
      agree(team_, timer_, [&] { find_factor(group); });
    }
    return spread_factor(team_, std::move(group.factor), group.owner, memory_of(group),
                         context_.device);
  }

  void measure_controls(const Group& group, const LinearProblem& problem, const RowRun& run) {
    const auto method = make_method(problem.settings, context_);
    at_place(problem.name, [&] {
      keep(problem, run,
           to_tensors(method->controls(problem.weight.narrow(0, run.first, run.rows),
                                       near_hessian(group), problem.weight.scalar_type())));
    });
  }

  /// This rank's rows of the group. Collective.
  void solve(const Group& group, const Factor& factor) {
    const at::Tensor hessian = near_hessian(group);
    std::vector<RowsToDeal> rows;
    for (size_t i = 0; i < group.problems.size(); ++i)
      rows.push_back(rows_of(*group.problems[i], i));
    std::vector<RowRun> mine(rows.size());  // a rank has at most one run of a layer, or no rows
    for (const auto& run : deal_rows(rows, std::vector<double>(size_t(team_.size()), 0.0)))
      if (run.owner == team_.rank()) mine[run.problem] = run;
    for (size_t i = 0; i < mine.size(); ++i)
      if (rows_meet(*group.problems[i]))
        solve_rows(*group.problems[i], mine[i], hessian, factor, all_ranks(*group.problems[i]));
    agree(team_, timer_, [&] {
      for (size_t i = 0; i < mine.size(); ++i)
        if (!rows_meet(*group.problems[i]) && mine[i].rows > 0)
          at_place(group.problems[i]->name,
                   [&] { solve_rows(*group.problems[i], mine[i], hessian, factor); });
    });
  }

  bool rows_meet(const LinearProblem& problem) const {
    return make_method(problem.settings, context_)->rows_meet();
  }

  RowTeam all_ranks(const LinearProblem& problem) const {
    return {[this, &problem](const std::function<void()>& local) {
              agree(team_, [&] { at_place(problem.name, local); });
            },
            [this](std::span<int64_t> counts) { team_.all_reduce(counts, ReduceOp::sum); }};
  }

  void solve_rows(const LinearProblem& problem, const RowRun& run, const at::Tensor& hessian,
                  const Factor& factor, const RowTeam& team = {}) {
    const auto method = make_method(problem.settings, context_);
    at::Tensor rows = problem.weight.narrow(0, run.first, run.rows);
    if (method->memory().is_cpu()) rows = rows.to(at::kCPU);
    const SolvedRows solved = method->solve(rows, hessian, factor, rows.scalar_type(), team);
    if (run.rows > 0) keep(problem, run, to_tensors(solved));
  }

  void keep(const LinearProblem& problem, const RowRun& run, const Tensors& tensors) {
    for (const auto& [field, tensor] : tensors)
      if (tensor.defined()) mine_[fmt::format("{}/{}/{}", field, run.first, problem.name)] = tensor;
  }

  /// What ranks have kept since the last time, to all. Collective.
  void gather() {
    const auto take = [this](const Tensors& tensors) {
      for (const auto& [path, tensor] : tensors) {
        const size_t row = path.find('/') + 1, name = path.find('/', row) + 1;
        parts_[path.substr(name)][path.substr(0, row - 1)][std::stoll(path.substr(row))] = tensor;
      }
    };
    for (const auto& tensors : gather_tensors(team_, std::exchange(mine_, {}))) take(tensors);
  }

  const Communicator& team_;
  PhaseTimer& timer_;
  SolvePace& pace_;
  kernels::Context context_;
  std::map<int, SharedFactors>& shared_;
  Tensors mine_;                        // as "field/first row/layer"
  std::map<std::string, Parts> parts_;  // by layer
};

}  // namespace

Factor SharedFactors::get(const FactorSettings& settings, const std::function<Factor()>& find) {
  Kept& kept = kept_[settings];
  Factor factor = kept.factor ? *kept.factor : find();
  kept.factor.reset();
  if (--kept.uses > 0) kept.factor = factor;
  return factor;
}

std::set<FactorSettings> factors_of(const std::vector<LinearProblem>& problems) {
  std::set<FactorSettings> all;
  for (const auto& problem : problems) all.insert(factor_settings(problem.settings));
  return all;
}

std::map<std::string, CompressedLinear> solve_together(
    const SolvingTeam& team, const TapProblems& problems,
    const std::map<int, TapStatistics>& statistics, std::map<int, SharedFactors>& shared,
    const std::function<void()>& between) {
  std::vector<Group> groups = groups_of(problems, statistics);
  TeamSolve solve(team, shared);
  std::map<std::string, CompressedLinear> results;
  for (std::span<Group> left = groups; !left.empty();) {
    const auto round = solve.next_round(left);
    solve.begin(round);
    for (auto& group : round) {
      results.merge(solve.finish(group));
      between();
    }
    left = left.subspan(round.size());
  }
  return results;
}

}  // namespace selfcal
