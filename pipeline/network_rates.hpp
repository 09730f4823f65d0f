// How fast ranks reach each other, measured through the very communicator that runs use.
#pragma once
#include "comm/communicator.hpp"

namespace selfcal {

struct NetworkRates {
  double bandwidth = 0;  // bytes/s of the busiest link while a sum goes round
  double latency = 0;    // seconds of one step of a collective
};

/// Collective over two or more ranks, a fraction of a second. The same result on all.
NetworkRates measure_network(const Communicator& ranks);

}  // namespace selfcal
