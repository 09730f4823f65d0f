#include "pipeline/machine.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>

namespace selfcal {

double Machine::share(int threads) const {
  return std::min<double>(threads, static_cast<double>(cores) / ranks) / std::max(1, rates.threads);
}

double Machine::disk_of(int ranks_that_write) const {
  constexpr int most_hosts = 16;  // taken: what a file system of a cluster keeps up with
  const int hosts = (ranks_that_write + ranks - 1) / ranks;
  return disk * std::clamp(hosts, 1, most_hosts);
}

Machine this_machine(int ranks_on_it) {
  Machine machine;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) machine.cores = std::max(1, CPU_COUNT(&mask));
  machine.ranks = ranks_on_it;
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
  if (pages > 0 && page > 0)
    machine.memory = static_cast<uint64_t>(pages) * static_cast<uint64_t>(page);
  return machine;
}

Machine typical_machine() {
  Machine machine;
  machine.rates = {1, 70e9, 6e9, {45e9, 0, 40e9, 25e9}, {}};
  return machine;
}

}  // namespace selfcal
