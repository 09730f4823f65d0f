#include "base/hash.hpp"

#include <fmt/format.h>
#include <xxhash.h>

namespace selfcal {

struct Hasher::State {
  XXH3_state_t* xxh = XXH3_createState();
  State() { XXH3_128bits_reset(xxh); }
  ~State() { XXH3_freeState(xxh); }
};

Hasher::Hasher() : state_(std::make_unique<State>()) {}
Hasher::~Hasher() = default;

Hasher& Hasher::bytes(const void* data, size_t size) {
  XXH3_128bits_update(state_->xxh, data, size);
  return *this;
}

Hasher& Hasher::text(std::string_view value) {
  number(static_cast<int64_t>(value.size()));
  return bytes(value.data(), value.size());
}

Hasher& Hasher::number(int64_t value) { return bytes(&value, sizeof value); }

std::string Hasher::digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->xxh);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace selfcal
