#include "comm/outbox.hpp"

namespace selfcal {

void Outbox::send(std::vector<std::byte> message, int to, int tag) {
  while (limit_ > 0 && in_flight() >= limit_) parcels_.front().request.wait();
  parcels_.push_back({std::move(message), {}});
  Parcel& parcel = parcels_.back();
  parcel.request = limit_ > 0 ? ranks_.send_until_taken(parcel.message, to, tag)
                              : ranks_.send(parcel.message, to, tag);
}

void Outbox::finish() {
  for (auto& parcel : parcels_) parcel.request.wait();
  parcels_.clear();
}

size_t Outbox::in_flight() {
  while (!parcels_.empty() && parcels_.front().request.done()) parcels_.pop_front();
  return parcels_.size();
}

}  // namespace selfcal
