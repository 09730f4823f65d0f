#include "comm/local/local_backend.hpp"

#include <algorithm>
#include <cstdlib>

#include "base/error.hpp"

namespace selfcal {

Request LocalBackend::send(std::span<const std::byte> data, int to, int tag) {
  if (to != 0) fail(ExitCode::internal, "send to rank {} of a communicator of one rank", to);
  (*mailbox_)[tag].emplace_back(data.begin(), data.end());
  return Request();
}

Request LocalBackend::receive(std::span<std::byte> into, int from, int tag) {
  if (from != 0)
    fail(ExitCode::internal, "receive from rank {} of a communicator of one rank", from);

  class Delivery : public Request::Operation {
   public:
    Delivery(std::shared_ptr<Mailbox> mailbox, std::span<std::byte> into, int tag)
        : mailbox_(std::move(mailbox)), into_(into), tag_(tag) {}
    bool test() override {
      auto& queue = (*mailbox_)[tag_];
      if (queue.empty()) return false;
      if (queue.front().size() != into_.size())
        fail(ExitCode::internal, "message {} has {} bytes, {} expected", tag_, queue.front().size(),
             into_.size());
      std::ranges::copy(queue.front(), into_.begin());
      queue.pop_front();
      return true;
    }

   private:
    std::shared_ptr<Mailbox> mailbox_;
    std::span<std::byte> into_;
    int tag_;
  };
  return Request(std::make_unique<Delivery>(mailbox_, into, tag));
}

std::optional<Envelope> LocalBackend::probe(int tag) {
  const auto& queue = (*mailbox_)[tag];
  if (queue.empty()) return std::nullopt;
  return Envelope{0, tag, static_cast<int64_t>(queue.front().size())};
}

void LocalBackend::abort(int code) { std::_Exit(code); }

}  // namespace selfcal
