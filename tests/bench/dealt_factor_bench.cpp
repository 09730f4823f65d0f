// A wide factor by a team of ranks with a core each: the processor time of the busiest rank between
// each two messages, added up. What a team takes, but for its messages, on a machine with fewer
// cores. Arguments: columns, ranks.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>

#include <ctime>

#include "stages/solve/dealt_factor.hpp"
#include "tests/stages/team_of_threads.hpp"

namespace selfcal {
namespace {

/// Of the calling thread.
double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Diagonally dominant, at the cost of one pass.
at::Tensor hessian_of(int64_t columns) {
  at::manual_seed(0);
  at::Tensor h = at::rand({columns, columns});
  h = (h + h.t()) / 2;
  h.diagonal().add_(static_cast<double>(columns));
  return h.contiguous();
}

void dealt_factor(benchmark::State& state) {
  kernels::use_one_library_thread();
  const at::Tensor hessian = hessian_of(state.range(0));
  const auto ranks = static_cast<size_t>(state.range(1));
  for (auto _ : state) {
    std::vector<std::vector<double>> pieces(ranks);  // by rank: seconds between messages
    testing_support::TeamOfThreads(static_cast<int>(ranks)).run([&](FactorTeam team) {
      auto& own = pieces[static_cast<size_t>(team.rank)];
      double since = processor_seconds();
      const auto end_piece = [&] { own.push_back(processor_seconds() - since); };
      team.broadcast = [&, send = team.broadcast](std::span<std::byte> data, int root) {
        end_piece();
        send(data, root);
        since = processor_seconds();
      };
      DealtFactor part(hessian, {}, team, {});
      if (!part.factorise()) state.SkipWithError("not positive definite");
      part.invert();
      end_piece();
    });
    double longest = 0;
    for (size_t piece = 0; piece < pieces.front().size(); ++piece) {
      double most = 0;
      for (const auto& of_rank : pieces) most = std::max(most, of_rank.at(piece));
      longest += most;
    }
    state.SetIterationTime(longest);
  }
}

BENCHMARK(dealt_factor)
    ->ArgsProduct({{4096, 14336}, {1, 2, 4, 8, 16, 32}})
    ->ArgNames({"columns", "ranks"})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace selfcal

BENCHMARK_MAIN();
