// The machine that a rank runs on.
#pragma once
#include <cstdint>
#include <string>

#include "pipeline/rates.hpp"

namespace selfcal {

struct Machine {
  int cores = 1;
  int ranks = 1;        // that share the cores and the memory
  uint64_t memory = 0;  // bytes; 0: not known
  HardwareRates rates;
  double network = 2e9;     // bytes/s between ranks
  double latency = 5e-5;    // seconds of one step of a collective
  double disk = 1e9;        // bytes/s of files, of one host
  double commit = 0.03;     // seconds of fsync and rename of a layer file
  bool knows_disk = false;  // whether they are measured where the run writes, else they are taken
  std::string device;       // the data sheet that the rates are of; empty: a CPU
  uint64_t device_memory = 0;  // bytes of each rank's GPU; 0: none, or not known

  /// What part of `rates` a rank of so many threads has: all its threads, unless the ranks of the
  /// machine have more of them than it has cores.
  double share(int threads) const;
  /// Bytes/s of a file that so many ranks write together, as many of them on a host as here.
  double disk_of(int ranks_that_write) const;
};

/// Cores this process may use and the memory of this machine; rates are measured apart.
Machine this_machine(int ranks_on_it);

/// A rank with a core of its own of a common CPU: what layouts are chosen with, so that the choice
/// does not depend on the moment's load. Measured on a Zen 3 core with AVX2.
Machine typical_machine();

}  // namespace selfcal
