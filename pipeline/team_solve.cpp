#include "pipeline/team_solve.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <span>

#include "pipeline/tensor_message.hpp"
#include "pipeline/timed_agreement.hpp"

namespace selfcal {
namespace {

using Tensors = std::map<std::string, at::Tensor>;

/// Rows [first, first + rows) of problem `problem`, solved by rank `owner`.
struct RowRun {
  size_t problem = 0;
  int64_t first = 0;
  int64_t rows = 0;
  int owner = 0;
};

/// Tiles of the stacked matrices, dealt in runs: rank r gets tiles [r T / R, (r + 1) T / R).
std::vector<RowRun> deal_rows(const std::vector<const LinearProblem*>& problems, int ranks) {
  std::vector<RowRun> tiles;
  for (size_t problem = 0; problem < problems.size(); ++problem) {
    const int64_t rows = problems[problem]->weight.size(0);
    for (int64_t first = 0; first < rows; first += solve_row_tile)
      tiles.push_back({problem, first, std::min(solve_row_tile, rows - first), 0});
  }
  std::vector<RowRun> runs;
  for (size_t tile = 0; tile < tiles.size(); ++tile) {
    RowRun next = tiles[tile];
    next.owner = static_cast<int>(tile * static_cast<size_t>(ranks) / tiles.size());
    if (!runs.empty() && runs.back().problem == next.problem && runs.back().owner == next.owner)
      runs.back().rows += next.rows;
    else
      runs.push_back(next);
  }
  return runs;
}

Tensors to_tensors(const SolvedRows& solved) {
  const CompressedLinear& linear = solved.linear;
  Tensors tensors{{"weight", linear.weight},      {"codes", linear.codes},
                  {"scale", linear.scale},        {"zero", linear.zero},
                  {"g_idx", linear.g_idx},        {"mask", linear.mask},
                  {"error", solved.error},        {"nearest", solved.nearest_error},
                  {"reference", solved.reference}};
  std::erase_if(tensors, [](const auto& item) { return !item.second.defined(); });
  return tensors;
}

/// Share of the weights whose bit in the mask is 0.
double pruned_share(const CompressedLinear& linear) {
  if (!linear.mask.defined()) return 0;
  int64_t kept = 0;
  const auto* bytes = linear.mask.const_data_ptr<uint8_t>();
  for (int64_t i = 0; i < linear.mask.numel(); ++i) kept += std::popcount(bytes[i]);
  return 1 - static_cast<double>(kept) / static_cast<double>(linear.weight.numel());
}

/// A problem's rows from all its runs, put together in row order.
CompressedLinear assemble(const std::vector<Tensors>& parts, const Factor& factor,
                          const MethodSettings& settings) {
  const auto joined = [&](const char* field) -> at::Tensor {
    if (!parts.front().contains(field)) return {};
    std::vector<at::Tensor> rows;
    for (const auto& part : parts) rows.push_back(part.at(field));
    return at::cat(rows);
  };
  CompressedLinear linear;
  linear.weight = joined("weight");
  linear.codes = joined("codes");
  linear.scale = joined("scale");
  linear.zero = joined("zero");
  linear.mask = joined("mask");
  if (parts.front().contains("g_idx")) linear.g_idx = parts.front().at("g_idx");
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

Tensors to_tensors(const Factor& factor) {
  Tensors tensors{{"upper", factor.upper},
                  {"permutation", factor.permutation},
                  {"dead", factor.dead},
                  {"damping", at::tensor({factor.damping}, at::kDouble)},
                  {"retries", at::tensor({static_cast<int64_t>(factor.retries)}, at::kLong)}};
  std::erase_if(tensors, [](const auto& item) { return !item.second.defined(); });
  return tensors;
}

Factor to_factor(const Tensors& tensors) {
  const auto field = [&](const char* name) {
    return tensors.contains(name) ? tensors.at(name) : at::Tensor();
  };
  return {field("upper"), field("permutation"), field("dead"), tensors.at("damping").item<double>(),
          static_cast<int>(tensors.at("retries").item<int64_t>())};
}

/// The factor, computed by `owner`. Collective.
Factor factorise_together(const Communicator& team, const Method& method, const at::Tensor& hessian,
                          int owner, PhaseTimer& timer) {
  Factor factor;
  {
    const auto scope = timer.measure(Phase::factorise);
    agree(team, timer, [&] {
      if (team.rank() == owner) factor = method.factorise(hessian);
    });
  }
  if (team.size() == 1) return factor;
  const auto scope = timer.measure(Phase::gather);
  std::vector<std::byte> message;
  if (team.rank() == owner) message = pack_tensors(to_tensors(factor));
  int64_t bytes = static_cast<int64_t>(message.size());
  team.broadcast(std::as_writable_bytes(std::span(&bytes, 1)), owner);
  message.resize(static_cast<size_t>(bytes));
  team.broadcast(message, owner);
  return team.rank() == owner ? factor : to_factor(unpack_tensors(message));
}

/// One problem's rows [first, first + rows): this rank's, by itself.
SolvedRows solve_run(const LinearProblem& problem, const RowRun& run, const at::Tensor& hessian,
                     const Factor& factor, kernels::Context context, const RowTeam& team = {}) {
  return make_method(problem.settings, context)
      ->solve(problem.weight.narrow(0, run.first, run.rows), hessian, factor,
              problem.weight.scalar_type(), team);
}

/// This rank's runs, as "run/field". Collective over `team`.
Tensors solve_runs(const Communicator& team, const std::vector<const LinearProblem*>& problems,
                   const std::vector<RowRun>& runs, const at::Tensor& hessian, const Factor& factor,
                   PhaseTimer& timer, kernels::Context context) {
  Tensors mine;
  const auto keep = [&](size_t run, const SolvedRows& solved) {
    for (auto& [field, tensor] : to_tensors(solved))
      mine[fmt::format("{}/{}", run, field)] = tensor;
  };
  const RowTeam all_ranks{
      [&](const std::function<void()>& local) { agree(team, local); },
      [&](std::span<int64_t> counts) { team.all_reduce(counts, ReduceOp::sum); }};
  std::vector<bool> solved_by_all(problems.size(), false);
  for (size_t problem = 0; problem < problems.size(); ++problem) {
    if (!make_method(problems[problem]->settings, context)->rows_meet()) continue;
    solved_by_all[problem] = true;
    // A rank has at most one run of a matrix; one without takes part with no rows.
    size_t mine_is = runs.size();
    for (size_t run = 0; run < runs.size(); ++run)
      if (runs[run].problem == problem && runs[run].owner == team.rank()) mine_is = run;
    const RowRun run = mine_is < runs.size() ? runs[mine_is] : RowRun{problem, 0, 0, team.rank()};
    const SolvedRows solved =
        solve_run(*problems[problem], run, hessian, factor, context, all_ranks);
    if (mine_is < runs.size()) keep(mine_is, solved);
  }
  agree(team, timer, [&] {
    for (size_t run = 0; run < runs.size(); ++run) {
      if (runs[run].owner != team.rank() || solved_by_all[runs[run].problem]) continue;
      keep(run, solve_run(*problems[runs[run].problem], runs[run], hessian, factor, context));
    }
  });
  return mine;
}

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

std::map<std::string, CompressedLinear> solve_together(const Communicator& team,
                                                       const std::vector<LinearProblem>& problems,
                                                       const at::Tensor& hessian, PhaseTimer& timer,
                                                       kernels::Context context,
                                                       SharedFactors* shared) {
  std::map<FactorSettings, std::vector<const LinearProblem*>> groups;
  for (const auto& problem : problems)
    groups[factor_settings(problem.settings)].push_back(&problem);

  std::map<std::string, CompressedLinear> results;
  int owner = 0;
  for (const auto& [key, stacked] : groups) {
    const auto first_method = make_method(stacked.front()->settings, context);
    const auto find = [&, owner = owner++ % team.size(), &method = *first_method] {
      return factorise_together(team, method, hessian, owner, timer);
    };
    const Factor factor = shared ? shared->get(key, find) : find();

    const auto runs = deal_rows(stacked, team.size());
    Tensors mine;
    {
      const auto scope = timer.measure(Phase::solve);
      mine = solve_runs(team, stacked, runs, hessian, factor, timer, context);
    }

    const auto scope = timer.measure(Phase::gather);
    std::vector<Tensors> solved_runs(runs.size());
    const auto keep = [&](const Tensors& tensors) {
      for (const auto& [path, tensor] : tensors) {
        const size_t slash = path.find('/');
        solved_runs[std::stoul(path.substr(0, slash))][path.substr(slash + 1)] = tensor;
      }
    };
    if (team.size() == 1)
      keep(std::move(mine));
    else
      for (const auto& message : team.all_gather(pack_tensors(mine))) keep(unpack_tensors(message));

    for (size_t problem = 0; problem < stacked.size(); ++problem) {
      std::vector<Tensors> parts;
      for (size_t run = 0; run < runs.size(); ++run)
        if (runs[run].problem == problem) parts.push_back(std::move(solved_runs[run]));
      results[stacked[problem]->name] = assemble(parts, factor, stacked[problem]->settings);
    }
  }
  return results;
}

}  // namespace selfcal
