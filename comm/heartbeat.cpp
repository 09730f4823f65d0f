#include "comm/heartbeat.hpp"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>

#include "base/error.hpp"
#include "base/host.hpp"
#include "comm/agreement.hpp"

namespace selfcal {
namespace {

/// Ranks with the same text reach each other over the loopback.
std::string network_of_this_process() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::array<char, 64> space{};
  if (readlink("/proc/self/ns/net", space.data(), space.size() - 1) < 0) space[0] = 0;
  return host_name() + " " + boot + " " + space.data();
}

/// IPv4 addresses of the interfaces that are up, the loopback left out.
std::vector<uint32_t> addresses_of_this_host() {
  std::vector<uint32_t> found;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return found;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    const bool usable = (entry->ifa_flags & IFF_UP) != 0 && (entry->ifa_flags & IFF_LOOPBACK) == 0;
    if (!usable || entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET) continue;
    sockaddr_in address{};
    std::memcpy(&address, entry->ifa_addr, sizeof address);
    found.push_back(address.sin_addr.s_addr);
  }
  freeifaddrs(list);
  return found;
}

int open_socket() {
  const int handle = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_in any{};
  any.sin_family = AF_INET;
  if (handle < 0 || bind(handle, reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0)
    fail(ExitCode::io, "watchdog: cannot open a UDP socket: {}", std::strerror(errno));
  return handle;
}

uint16_t port_of(int handle) {
  sockaddr_in bound{};
  socklen_t size = sizeof bound;
  getsockname(handle, reinterpret_cast<sockaddr*>(&bound), &size);
  return bound.sin_port;
}

// One rank's entry in the exchange: port, network, host, then addresses to the end; texts end in 0.
std::vector<std::byte> pack_entry(uint16_t port) {
  std::string text(reinterpret_cast<const char*>(&port), sizeof port);
  text += network_of_this_process() + '\0' + host_name() + '\0';
  for (const uint32_t ip : addresses_of_this_host())
    text.append(reinterpret_cast<const char*>(&ip), sizeof ip);
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

HeartbeatSocket::HeartbeatSocket(const Communicator& world) {
  agree(world, [&] {
    socket_ = open_socket();
    wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (wake_ < 0) fail(ExitCode::io, "watchdog: eventfd: {}", std::strerror(errno));
  });
  job_ = (uint64_t{std::random_device{}()} << 32) ^ std::random_device{}();
  world.broadcast(std::as_writable_bytes(std::span(&job_, 1)), 0);
  const std::string network = network_of_this_process();
  for (const auto& entry : world.all_gather(pack_entry(port_of(socket_)))) {
    const std::string text(reinterpret_cast<const char*>(entry.data()), entry.size());
    uint16_t port = 0;
    std::memcpy(&port, text.data(), sizeof port);
    const std::string their_network = text.data() + sizeof port;
    const size_t host_at = sizeof port + their_network.size() + 1;
    Peer peer{text.data() + host_at, {}};
    if (their_network == network)
      peer.addresses.push_back({htonl(INADDR_LOOPBACK), port});
    else
      for (size_t at = host_at + peer.host.size() + 1; at + 4 <= text.size(); at += 4) {
        Address address{0, port};
        std::memcpy(&address.ip, text.data() + at, sizeof address.ip);
        peer.addresses.push_back(address);
      }
    peers_.push_back(std::move(peer));
  }
}

HeartbeatSocket::~HeartbeatSocket() {
  close(socket_);
  close(wake_);
}

void HeartbeatSocket::send(Heartbeat beat, int to) const {
  beat.job = job_;
  for (const auto& address : peers_[static_cast<size_t>(to)].addresses) {
    sockaddr_in target{};
    target.sin_family = AF_INET;
    target.sin_addr.s_addr = address.ip;
    target.sin_port = address.port;
    (void)sendto(socket_, &beat, sizeof beat, 0, reinterpret_cast<const sockaddr*>(&target),
                 sizeof target);
  }
}

std::optional<Heartbeat> HeartbeatSocket::receive() const {
  for (;;) {
    Heartbeat beat;
    const auto size = recv(socket_, &beat, sizeof beat, 0);
    if (size < 0 && errno != ECONNREFUSED && errno != EINTR) return std::nullopt;
    if (size != static_cast<ssize_t>(sizeof beat) || beat.job != job_) continue;
    if (beat.rank < 0 || static_cast<size_t>(beat.rank) >= peers_.size()) continue;
    beat.phase[sizeof beat.phase - 1] = 0;
    beat.wait[sizeof beat.wait - 1] = 0;
    return beat;
  }
}

void HeartbeatSocket::wait(double seconds) const {
  std::array<pollfd, 2> watched{{{socket_, POLLIN, 0}, {wake_, POLLIN, 0}}};
  poll(watched.data(), watched.size(), std::max(0, static_cast<int>(std::ceil(seconds * 1000))));
}

void HeartbeatSocket::wake() const { eventfd_write(wake_, 1); }

}  // namespace selfcal
