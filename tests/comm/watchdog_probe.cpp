// A job that does one thing under the watchdog, for watchdog_test.py:
//   watchdog_probe WHAT TIMEOUT SECONDS
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "base/log.hpp"
#include "comm/mpi/mpi_backend.hpp"
#include "comm/watchdog.hpp"

namespace selfcal {
namespace {

using Clock = std::chrono::steady_clock;

/// One rank does `step` again and again for so long, the others wait for it.
template <class Step>
void one_works(const Communicator& world, double seconds, Step step) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  if (world.rank() == world.size() - 1)
    while (Clock::now() < end) step();
  world.barrier();
}

constexpr double nap_seconds = 0.05;
void nap() { std::this_thread::sleep_for(std::chrono::duration<double>(nap_seconds)); }

int run(const std::string& what, double timeout, double seconds) {
  MpiSession session;
  const Communicator world = Communicator::world();
  const Watchdog watchdog(world, timeout);
  world.activity().enter("probe");
  if (world.rank() == 0) std::printf("started\n"), std::fflush(stdout);
  if (what == "library call") {  // no boundary, only the processor
    volatile double value = 1;
    one_works(world, seconds, [&] { value = std::sqrt(value + 1); });
  } else if (what == "tokens") {  // boundaries, hardly any processor: as on an accelerator
    one_works(world, seconds, [&] {
      nap();
      world.activity().advance();
    });
  } else if (what == "stands still") {
    one_works(world, seconds,
              [&] { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); });
  } else if (what == "wait for each other") {  // of a ring, everybody receives first
    int word = 0;
    world.receive(std::as_writable_bytes(std::span(&word, 1)), (world.rank() + 1) % world.size(), 7)
        .wait();
  } else if (what == "long wait") {  // for a signal of the test: everybody takes as many turns
    for (double passed = 0; passed < seconds; passed += nap_seconds) {
      nap();
      world.barrier();
    }
  }
  return 0;
}

}  // namespace
}  // namespace selfcal

int main(int argc, char** argv) {
  if (argc != 4) return 64;
  return selfcal::run(argv[1], std::atof(argv[2]), std::atof(argv[3]));
}
