#include "launch/compute.hpp"

#include <sched.h>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "base/freed_memory.hpp"

namespace selfcal {
namespace {

cpu_set_t affinity() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  sched_getaffinity(0, sizeof mask, &mask);
  return mask;
}

/// Of all ranks on this node. Collective.
std::vector<cpu_set_t> affinities(const Communicator& world) {
  if (world.size() == 1) return {affinity()};
  MPI_Comm node = MPI_COMM_NULL;
  MPI_Comm_split_type(world.mpi(), MPI_COMM_TYPE_SHARED, world.rank(), MPI_INFO_NULL, &node);
  int ranks = 1;
  MPI_Comm_size(node, &ranks);
  const cpu_set_t mine = affinity();
  std::vector<cpu_set_t> all(static_cast<size_t>(ranks));
  MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, node);
  MPI_Comm_free(&node);
  return all;
}

}  // namespace

CoresOfNode cores_of_node(const Communicator& world) {
  const cpu_set_t mine = affinity();
  const auto all = affinities(world);
  std::array<int32_t, 1> ranks{static_cast<int32_t>(all.size())};
  world.all_reduce(std::span(ranks), ReduceOp::max);
  CoresOfNode cores;
  cores.ranks = ranks[0];
  cpu_set_t together;
  CPU_ZERO(&together);
  for (const cpu_set_t& other : all) {
    cores.sharing_ranks += CPU_EQUAL(&mine, &other) ? 1 : 0;
    CPU_OR(&together, &together, &other);
  }
  cores.of_all_ranks = CPU_COUNT(&together);
  return cores;
}

int usable_cores() {
  const cpu_set_t mask = affinity();
  return std::max(1, CPU_COUNT(&mask));
}

Compute::Compute(int threads, int sharing_ranks, kernels::Device device) : device_(device) {
  if (threads == 0) threads = std::max(1, usable_cores() / sharing_ranks);
  keep_freed_memory();
  kernels::use_one_library_thread();
  pool_ = std::make_unique<ThreadPool>(threads, kernels::use_one_library_thread);
}

}  // namespace selfcal
