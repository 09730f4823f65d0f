// Content hashes (XXH3-128): of bytes as they are, never of files with times in them.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace selfcal {

/// A running XXH3-128 over bytes; text fields are hashed with their length, so that fields cannot
/// run together.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  Hasher& bytes(const void* data, size_t size);
  Hasher& text(std::string_view value);
  Hasher& number(int64_t value);
  /// 32 hexadecimal digits of everything added so far.
  std::string digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace selfcal
