#include "pipeline/team_solve.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <span>
#include <utility>

#include "pipeline/tensor_exchange.hpp"
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

/// Tiles of rows for each rank, `all` in sum. In units of a tile's solve and its error (as much as
/// its two controls) the factor costs about `factor`: meanwhile the other ranks measure their
/// controls. The owner gets so many tiles fewer that all are done at about the same time.
std::vector<int64_t> tiles_of_ranks(int64_t all, int ranks, int owner, double factor) {
  // Another rank's t tiles take max(factor, t) + t, the owner's o take factor + 2 o.
  const auto tiles = static_cast<double>(all);
  const double other = std::min((tiles + factor / 2) / ranks, tiles / (ranks - 0.5));
  const auto of_owner = ranks == 1 ? all : std::llround(tiles - other * (ranks - 1));
  const int64_t of_others = all - of_owner;
  std::vector<int64_t> dealt;
  int64_t others_before = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    if (rank == owner) {
      dealt.push_back(of_owner);
      continue;
    }
    dealt.push_back((others_before + 1) * of_others / (ranks - 1) -
                    others_before * of_others / (ranks - 1));
    ++others_before;
  }
  return dealt;
}

/// Tiles of the stacked matrices, dealt in runs: rank after rank.
std::vector<RowRun> deal_rows(const std::vector<const LinearProblem*>& problems, int ranks,
                              int owner, bool has_factor, kernels::Context context) {
  std::vector<RowRun> tiles;
  double factor = 0;
  for (size_t problem = 0; problem < problems.size(); ++problem) {
    const MethodSettings& settings = problems[problem]->settings;
    const int64_t rows = problems[problem]->weight.size(0),
                  tile = make_method(settings, context)->row_tile();
    for (int64_t first = 0; first < rows; first += tile)
      tiles.push_back({problem, first, std::min(tile, rows - first), 0});
    if (has_factor)
      factor =
          static_cast<double>(problems[problem]->weight.size(1)) / static_cast<double>(2 * tile);
  }
  const auto dealt = tiles_of_ranks(static_cast<int64_t>(tiles.size()), ranks, owner, factor);
  std::vector<RowRun> runs;
  size_t tile = 0;
  for (int rank = 0; rank < ranks; ++rank)
    for (int64_t i = 0; i < dealt[static_cast<size_t>(rank)]; ++i) {
      RowRun next = tiles[tile++];
      next.owner = rank;
      if (!runs.empty() && runs.back().problem == next.problem && runs.back().owner == rank)
        runs.back().rows += next.rows;
      else
        runs.push_back(next);
    }
  return runs;
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

/// What belongs to a factor beside U, which is large.
Tensors small_parts(const Factor& factor) {
  return {{"shape", at::tensor(factor.upper.sizes())},
          {"permutation", factor.permutation},
          {"dead", factor.dead},
          {"damping", at::tensor({factor.damping}, at::kDouble)},
          {"retries", at::tensor({static_cast<int64_t>(factor.retries)}, at::kLong)}};
}

/// A factor without its U, for which there is room in `memory`.
Factor from_small_parts(const Tensors& tensors, at::Device memory) {
  const at::Tensor& shape = tensors.at("shape");
  const int64_t* extents = shape.const_data_ptr<int64_t>();
  return {at::empty({extents[0], extents[1]}, at::device(memory).dtype(at::kFloat)),
          tensors.at("permutation"), tensors.at("dead"), tensors.at("damping").item<double>(),
          static_cast<int>(tensors.at("retries").item<int64_t>())};
}

/// The factor, computed by `owner`; the others do something else `meanwhile`. Collective.
Factor factorise_together(const Communicator& team, const Method& method, const at::Tensor& hessian,
                          int owner, const std::function<void()>& meanwhile, PhaseTimer& timer,
                          const kernels::Device& device) {
  Factor factor;
  agree(team, timer, [&] {
    if (team.rank() != owner) return meanwhile();
    const auto scope = timer.measure(Phase::factorise);
    factor = method.factorise(hessian);
  });
  if (team.size() == 1) return factor;
  const auto scope = timer.measure(Phase::gather);
  std::vector<std::byte> message;
  if (team.rank() == owner) message = pack_tensors(small_parts(factor));
  int64_t bytes = static_cast<int64_t>(message.size());
  team.broadcast(std::as_writable_bytes(std::span(&bytes, 1)), owner);
  message.resize(static_cast<size_t>(bytes));
  team.broadcast(message, owner);
  if (team.rank() != owner) factor = from_small_parts(unpack_tensors(message), method.memory());
  broadcast_tensor(team, factor.upper, owner, device);
  return factor;
}

/// One problem's rows [first, first + rows): this rank's, by itself.
SolvedRows solve_run(const LinearProblem& problem, const RowRun& run, const at::Tensor& hessian,
                     const Factor& factor, kernels::Context context, const RowTeam& team = {}) {
  const auto method = make_method(problem.settings, context);
  at::Tensor rows = problem.weight.narrow(0, run.first, run.rows);
  if (method->memory().is_cpu()) rows = rows.to(at::kCPU);
  return method->solve(rows, hessian, factor, rows.scalar_type(), team);
}

RowControls controls_of(const LinearProblem& problem, const RowRun& run, const at::Tensor& hessian,
                        kernels::Context context) {
  return make_method(problem.settings, context)
      ->controls(problem.weight.narrow(0, run.first, run.rows), hessian,
                 problem.weight.scalar_type());
}

void keep(Tensors& mine, size_t run, const Tensors& tensors) {
  for (const auto& [field, tensor] : tensors)
    if (tensor.defined()) mine[fmt::format("{}/{}", run, field)] = tensor;
}

/// This rank's runs, after what it does `first`. Collective over `team`.
void solve_runs(const Communicator& team, const std::vector<const LinearProblem*>& problems,
                const std::vector<RowRun>& runs, const at::Tensor& hessian, const Factor& factor,
                const std::function<void()>& first, PhaseTimer& timer, kernels::Context context,
                Tensors& mine) {
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
    if (mine_is < runs.size()) keep(mine, mine_is, to_tensors(solved));
  }
  agree(team, timer, [&] {
    first();
    for (size_t run = 0; run < runs.size(); ++run) {
      if (runs[run].owner != team.rank() || solved_by_all[runs[run].problem]) continue;
      keep(
          mine, run,
          to_tensors(solve_run(*problems[runs[run].problem], runs[run], hessian, factor, context)));
    }
  });
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
                                                       const TapStatistics& statistics,
                                                       PhaseTimer& timer, kernels::Context context,
                                                       SharedFactors* shared) {
  // By factor, and by what of the input's statistics the layers need.
  std::map<std::pair<FactorSettings, bool>, std::vector<const LinearProblem*>> groups;
  for (const auto& problem : problems)
    groups[{factor_settings(problem.settings), needs_products(problem.settings)}].push_back(
        &problem);

  std::map<std::string, CompressedLinear> results;
  int next_owner = 0;
  for (const auto& [key, stacked] : groups) {
    const FactorSettings& wanted = key.first;
    const bool sharing = shared != nullptr && wanted.inverts,
               is_there = sharing && shared->has(wanted);
    const auto method = make_method(stacked.front()->settings, context);
    const at::Tensor& hessian = statistics.of(stacked.front()->settings);
    const at::Tensor near = hessian.to(method->memory());
    const int owner = next_owner++ % team.size();
    const auto runs = deal_rows(stacked, team.size(), owner, wanted.inverts && !is_there, context);
    Tensors mine;  // as "run/field"
    bool has_controls = false;
    const auto measure_controls = [&] {
      if (std::exchange(has_controls, true)) return;
      const auto scope = timer.measure(Phase::solve);
      for (size_t run = 0; run < runs.size(); ++run)
        if (runs[run].owner == team.rank())
          keep(mine, run,
               to_tensors(controls_of(*stacked[runs[run].problem], runs[run], near, context)));
    };
    const auto find = [&] {
      return factorise_together(team, *method, hessian, owner, measure_controls, timer,
                                context.device);
    };
    const Factor factor = sharing ? shared->get(wanted, find) : find();
    {
      const auto scope = timer.measure(Phase::solve);
      solve_runs(team, stacked, runs, near, factor, measure_controls, timer, context, mine);
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
