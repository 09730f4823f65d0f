#include "pipeline/devices.hpp"

#include <map>

#include "base/error.hpp"
#include "base/names.hpp"

namespace selfcal {
namespace {

/// Dense peaks without sparsity, as the manufacturer's data sheets give them.
struct DataSheet {
  double bfloat16 = 0;   // flop/s of the matrix units
  double float32 = 0;    // flop/s without them
  double bandwidth = 0;  // bytes/s of the memory
  double network = 0;    // bytes/s of the usual adapter beside one device
  uint64_t memory = 0;
};

const std::map<std::string, DataSheet>& data_sheets() {
  static const std::map<std::string, DataSheet> all = {
      {"a100", {312e12, 19.5e12, 2.039e12, 25e9, 80'000'000'000}},  // SXM, 80 GB
      {"h100", {989e12, 67e12, 3.35e12, 50e9, 80'000'000'000}},     // SXM5, 80 GB
      {"h200", {989e12, 67e12, 4.8e12, 50e9, 141'000'000'000}}};    // SXM5, 141 GB
  return all;
}

}  // namespace

Machine device_machine(const std::string& name, at::ScalarType dtype) {
  const auto found = data_sheets().find(name);
  if (found == data_sheets().end())
    fail(ExitCode::usage, "--device: found {}, expected one of {}", name, names_of(data_sheets()));
  const DataSheet& sheet = found->second;
  const double products = dtype == at::kBFloat16 ? sheet.bfloat16 : sheet.float32;
  constexpr int devices_of_a_host = 8;
  Machine machine;
  machine.cores = machine.ranks = devices_of_a_host;  // a core for each
  machine.device = name;
  machine.device_memory = sheet.memory;
  machine.network = sheet.network;
  machine.latency = 1e-5;  // taken: a step of a collective over several nodes
  machine.rates.forward = products;
  machine.rates.logits = sheet.float32;
  machine.rates.decode = sheet.bandwidth;
  machine.rates.wide.statistics = products / 2;  // a multiplication and an addition an entry
  // Of columns^3: a third for Cholesky, one for the inverse of a triangle as the library finds it.
  machine.rates.wide.factorise = sheet.float32 * 3 / 4;
  // Of rows columns^2: half of twice that for the solve, three times all of it for the errors.
  machine.rates.wide.solve = sheet.float32 / 7;
  return machine;
}

}  // namespace selfcal
