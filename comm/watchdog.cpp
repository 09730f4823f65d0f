#include "comm/watchdog.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <ctime>

#include "base/error.hpp"
#include "base/log.hpp"

namespace selfcal {
namespace {

constexpr double longest_interval = 1.0;  // seconds from one beat to the next
constexpr double least_use = 0.005;       // share of one core: less is standing still
constexpr int repeats = 3;                // of a message that no other follows

double seconds_of(clockid_t clock) {
  timespec used{};
  clock_gettime(clock, &used);
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) * 1e-9;
}

/// Processor time of this process but for the thread that asks, the watchdog's.
double processor_seconds() {
  return seconds_of(CLOCK_PROCESS_CPUTIME_ID) - seconds_of(CLOCK_THREAD_CPUTIME_ID);
}

template <size_t N>
void copy_text(std::string_view text, char (&into)[N]) {
  const size_t size = std::min(text.size(), N - 1);
  std::copy_n(text.data(), size, into);
  into[size] = 0;
}

}  // namespace

Watchdog::Watchdog(const Communicator& world, double timeout)
    : world_(world),
      rank_(world.rank()),
      timeout_(timeout),
      interval_(std::min(longest_interval, timeout / 8)),
      start_(Activity::Clock::now()) {
  if (world.size() == 1) return;
  socket_ = std::make_unique<HeartbeatSocket>(world);
  std::vector<std::string> hosts;
  for (int rank = 0; rank < world.size(); ++rank) hosts.push_back(socket_->host(rank));
  attendance_ = std::make_unique<Attendance>(std::move(hosts), timeout, 0.0);
  mine_.rank = rank_;
  // Signals are for the main thread.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { watch(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Watchdog::~Watchdog() {
  if (!thread_.joinable()) return;
  closing_ = true;
  socket_->wake();
  thread_.join();
  for (int i = 0; i < repeats; ++i) tell(Heartbeat::Kind::leaving);
}

double Watchdog::seconds() const {
  return std::chrono::duration<double>(Activity::Clock::now() - start_).count();
}

void Watchdog::watch() {
  double last = seconds();
  beat(last);
  while (!closing_) {
    socket_->wait(beat_at_ + interval_ - seconds());
    const double now = seconds();
    // This process itself may have been stopped, the whole job suspended by a scheduler.
    const double gap = now - last - 2 * interval_;
    if (gap > 0) attendance_->forgive(gap);
    last = now;
    while (const auto heard = socket_->receive()) {
      if (heard->kind == Heartbeat::Kind::end_job) leave();
      attendance_->heard(*heard, now);
    }
    if (now < beat_at_ + interval_) continue;
    beat(now);
    judge(now);
    warn_of_unheard(now);
  }
}

void Watchdog::beat(double now) {
  const Activity::Now doing = world_.activity().now();
  const double used = processor_seconds();
  const bool computes = !doing.waiting && used - processor_ > least_use * (now - beat_at_);
  if (doing.progress != progress_ || computes) moved_at_ = now;
  progress_ = doing.progress;
  processor_ = used;
  beat_at_ = now;

  mine_.waiting = doing.waiting;
  mine_.peer = doing.wait.peer;
  mine_.tag = doing.wait.tag;
  mine_.still = static_cast<float>(now - moved_at_);
  mine_.seconds = std::chrono::duration<float>(Activity::Clock::now() - doing.since).count();
  copy_text(doing.phase, mine_.phase);
  copy_text(doing.wait.what, mine_.wait);
  attendance_->heard(mine_, now);
  tell(Heartbeat::Kind::alive);
}

void Watchdog::tell(Heartbeat::Kind kind) const {
  Heartbeat message = mine_;
  message.kind = kind;
  const bool to_all = judges() || kind == Heartbeat::Kind::end_job;
  for (int rank = 0; rank < (to_all ? world_.size() : 2); ++rank)
    if (rank != rank_) socket_->send(message, rank);
}

void Watchdog::judge(double now) {
  if (rank_ == 0) {
    if (const auto verdict = attendance_->verdict(now)) end_job(*verdict, now);
  } else if (rank_ == 1) {
    if (attendance_->silent(0, now))
      end_job(fmt::format("rank 0 on {} has not been heard for more than {:.1f} s: it hangs, or "
                          "its host or network is lost",
                          socket_->host(0), timeout_),
              now);
  } else if (attendance_->silent(0, now) && attendance_->silent(1, now)) {
    end_job(fmt::format("rank {} on {} has heard neither rank 0 nor rank 1 for more than {:.1f} s: "
                        "its network is lost, or they are",
                        rank_, socket_->host(rank_), timeout_),
            now);
  }
}

void Watchdog::warn_of_unheard(double now) {
  if (rank_ != 0 || warned_ || now < std::max(10.0, timeout_ / 2)) return;
  warned_ = true;
  const auto unheard = attendance_->never_heard();
  if (!unheard.empty())
    log::warn(
        "no heartbeats come from {} of {} ranks, rank {} on {} among them (is UDP blocked between "
        "the hosts?): that one of them hangs will not be noticed",
        unheard.size(), world_.size(), unheard.front(), socket_->host(unheard.front()));
}

void Watchdog::end_job(const std::string& reason, double now) const {
  std::string text;
  for (const auto& line : attendance_->describe(now))
    text += fmt::format("selfcal: watchdog: {}\n", line);
  text += fmt::format("selfcal: error: {}; the job ends (layout.timeout is {:g} s) [rank {}]\n",
                      reason, timeout_, rank_);
  (void)!write(STDERR_FILENO, text.data(), text.size());
  for (int i = 0; i < repeats; ++i) {
    tell(Heartbeat::Kind::end_job);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  leave();
}

// MPI is not asked: it may be what hangs. The launcher ends what is left.
void Watchdog::leave() { std::_Exit(static_cast<int>(ExitCode::io)); }

}  // namespace selfcal
