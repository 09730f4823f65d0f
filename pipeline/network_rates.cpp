#include "pipeline/network_rates.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <vector>

namespace selfcal {
namespace {

constexpr int64_t large = 1 << 20;  // numbers of 8 bytes: of the size of a Hessian's sums
constexpr int repeats = 8;

/// Seconds of an all_reduce of so many numbers: the best of several, after one that does not count.
double seconds_of_sum(const Communicator& ranks, int64_t numbers) {
  std::vector<int64_t> data(static_cast<size_t>(numbers), 1);
  double best = 1e30;
  for (int time = 0; time <= repeats; ++time) {
    ranks.barrier();
    const auto start = std::chrono::steady_clock::now();
    ranks.all_reduce(std::span(data), ReduceOp::max);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    if (time > 0) best = std::min(best, taken.count());
  }
  return best;
}

}  // namespace

NetworkRates measure_network(const Communicator& ranks) {
  const double size = ranks.size();
  const double steps = std::bit_width(static_cast<unsigned>(ranks.size() - 1));
  const double one = seconds_of_sum(ranks, 1), many = seconds_of_sum(ranks, large);
  // As the cost model counts: a ring moves a sum twice through every link but one.
  const double bytes = 2 * (size - 1) / size * 8 * static_cast<double>(large);
  NetworkRates rates{bytes / std::max(many - one, 1e-9), one / steps};
  ranks.broadcast(std::as_writable_bytes(std::span(&rates, 1)), 0);
  return rates;
}

}  // namespace selfcal
