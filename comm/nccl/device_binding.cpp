#include "comm/nccl/device_binding.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "comm/agreement.hpp"

namespace selfcal {
namespace {

std::vector<std::string> gather_texts(const Communicator& ranks, const std::string& mine) {
  std::vector<std::string> texts;
  for (const auto& part : ranks.all_gather(std::as_bytes(std::span(mine))))
    texts.emplace_back(reinterpret_cast<const char*>(part.data()), part.size());
  return texts;
}

int device_of(int rank_of_host, int ranks_of_host, int devices, const std::string& host) {
  if (devices == 0) fail(ExitCode::usage, "no GPU is visible on host {}", host);
  if (devices == 1) return 0;
  if (rank_of_host >= devices)
    fail(ExitCode::usage, "host {} has {} ranks and {} GPUs, expected one rank a GPU", host,
         ranks_of_host, devices);
  return rank_of_host;
}

void check_that_devices_differ(const std::vector<DeviceBinding>& bindings) {
  for (size_t a = 0; a < bindings.size(); ++a) {
    for (size_t b = a + 1; b < bindings.size(); ++b) {
      if (bindings[a].host == bindings[b].host && bindings[a].bus_id == bindings[b].bus_id)
        fail(ExitCode::usage, "ranks {} and {} share GPU {} of host {}, expected one rank a GPU", a,
             b, bindings[a].bus_id, bindings[a].host);
    }
  }
}

}  // namespace

std::vector<DeviceBinding> bind_devices(const Communicator& ranks, NcclCalls& calls,
                                        const std::string& host) {
  std::vector<DeviceBinding> bindings(static_cast<size_t>(ranks.size()));
  const std::vector<std::string> hosts = gather_texts(ranks, host);
  DeviceBinding mine;
  agree(ranks, [&] {
    const auto rank_of_host = std::count(hosts.begin(), hosts.begin() + ranks.rank(), host);
    mine.device =
        device_of(static_cast<int>(rank_of_host), static_cast<int>(std::ranges::count(hosts, host)),
                  calls.device_count(), host);
    mine.bus_id = calls.bus_id(mine.device);
    mine.name = calls.device_name(mine.device);
  });
  const auto devices = gather_texts(ranks, std::to_string(mine.device)),
             bus_ids = gather_texts(ranks, mine.bus_id), names = gather_texts(ranks, mine.name);
  for (size_t rank = 0; rank < bindings.size(); ++rank)
    bindings[rank] = {hosts[rank], std::stoi(devices[rank]), bus_ids[rank], names[rank]};
  check_that_devices_differ(bindings);
  return bindings;
}

std::string describe(int rank, const DeviceBinding& binding) {
  return fmt::format("rank {}: GPU {} of {}, {}, {}", rank, binding.device, binding.host,
                     binding.bus_id, binding.name);
}

}  // namespace selfcal
