// Ranks that find a factor together, as threads of one process.
#pragma once
#include <algorithm>
#include <barrier>
#include <functional>
#include <span>
#include <thread>
#include <vector>

#include "stages/solve/cholesky.hpp"

namespace selfcal::testing_support {

class TeamOfThreads {
 public:
  explicit TeamOfThreads(int ranks) : ranks_(ranks), meeting_(ranks) {}

  /// Runs body(team) on every rank.
  void run(const std::function<void(const FactorTeam&)>& body) {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < ranks_; ++rank)
      threads.emplace_back([this, rank, &body] {
        body({rank, ranks_,
              [this, rank](std::span<std::byte> data, int root) { broadcast(data, root, rank); }});
      });
  }

 private:
  void broadcast(std::span<std::byte> data, int root, int rank) {
    if (rank == root) from_ = data;
    meeting_.arrive_and_wait();
    if (rank != root) std::ranges::copy(from_, data.begin());
    meeting_.arrive_and_wait();
  }

  int ranks_;
  std::barrier<> meeting_;
  std::span<std::byte> from_;
};

}  // namespace selfcal::testing_support
