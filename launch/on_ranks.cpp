#include "launch/on_ranks.hpp"

#include <cstdio>
#include <optional>

#include "base/log.hpp"
#include "base/stop_signal.hpp"
#include "comm/agreement.hpp"
#include "comm/mpi/mpi_backend.hpp"

namespace selfcal {
namespace {

/// Ends the job for an error that other ranks do not know of; returns where there are none.
ExitCode end_job(const Communicator& world, const Error& error) {
  // An error of a team carries its rank already.
  const bool named = std::string_view(error.what()).find(" [rank ") != std::string_view::npos;
  const auto rank =
      world.size() > 1 && !named ? fmt::format(" [rank {}]", world.rank()) : std::string();
  std::fprintf(stderr, "selfcal: error: %s%s\n", error.what(), rank.c_str());
  std::fflush(stderr);
  if (world.size() > 1) world.abort(static_cast<int>(error.code()));
  return error.code();
}

}  // namespace

void on_ranks(const std::function<void(const Communicator& world)>& work) {
  std::optional<ExitCode> failure;
  {
    std::optional<MpiSession> session;
    if (!is_alone()) session.emplace();
    const Communicator world = session ? Communicator::world() : Communicator::local();
    log::set_speaking(world.rank() == 0);
    try {
      work(world);
    } catch (const AgreedError& error) {
      if (world.rank() == 0) std::fprintf(stderr, "selfcal: error: %s\n", error.what());
      failure = error.code();
    } catch (const Stopped& stop) {
      if (world.rank() == 0) std::fprintf(stderr, "selfcal: %s\n", stop.what());
      failure = stop.code();
    } catch (const Error& error) {
      failure = end_job(world, error);
    } catch (const std::exception& error) {
      const std::string text = error.what();
      failure = end_job(world, Error(ExitCode::internal, text.substr(0, text.find('\n'))));
    }
  }
  if (failure) throw Reported(*failure);
}

}  // namespace selfcal
