// Intel's Advanced Matrix Extensions: eight tile registers of 16 rows of 64 bytes. Tiles 0 to 3 are
// the sums of 32 rows and 32 columns, so that each operand's tile is multiplied twice; 4 and 5 hold
// rows of the first operand, 6 and 7 columns of the second. Only for files that are compiled for
// them.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace selfcal::amx {
namespace {

constexpr int64_t tile_rows = 16, tile_columns = 16, tile_bytes = 1024, most_rows = 2 * tile_rows;

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  /// For `count` rows of the first operand, at most most_rows.
  explicit Configuration(int64_t count) {
    const int64_t upper = count < tile_rows ? count : tile_rows, lower = count - upper;
    const int64_t of_tile[8] = {upper, upper, lower, lower, upper, lower, tile_rows, tile_rows};
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = of_tile[tile] > 0 ? 64 : 0;
      rows[tile] = static_cast<uint8_t>(of_tile[tile]);
    }
  }
};

/// Sums in memory: 32 columns of each row.
struct Sums {
  char* upper;
  int64_t stride;  // bytes
  bool lower_too;  // more than 16 rows

  char* lower() const { return upper + tile_rows * stride; }
};

inline void load_sums(const Sums& sums) {
  _tile_loadd(0, sums.upper, sums.stride);
  _tile_loadd(1, sums.upper + 64, sums.stride);
  if (!sums.lower_too) return;
  _tile_loadd(2, sums.lower(), sums.stride);
  _tile_loadd(3, sums.lower() + 64, sums.stride);
}

inline void clear_sums(const Sums& sums) {
  _tile_zero(0);
  _tile_zero(1);
  if (!sums.lower_too) return;
  _tile_zero(2);
  _tile_zero(3);
}

inline void store_sums(const Sums& sums) {
  _tile_stored(0, sums.upper, sums.stride);
  _tile_stored(1, sums.upper + 64, sums.stride);
  if (!sums.lower_too) return;
  _tile_stored(2, sums.lower(), sums.stride);
  _tile_stored(3, sums.lower() + 64, sums.stride);
}

/// Tile loads do not tell the compiler that they read memory.
inline void settle_memory() { asm volatile("" ::: "memory"); }

/// Calls body(first row, their sums) for runs of most_rows of the rows of c, `stride` floats apart,
/// and for the rest, with the tiles configured for so many.
template <class Body>
inline void for_sums(int64_t rows, float* c, int64_t stride, const Body& body) {
  settle_memory();
  int64_t configured = 0;
  for (int64_t row = 0; row < rows; row += most_rows) {
    const int64_t count = rows - row < most_rows ? rows - row : most_rows;
    if (count != configured) {
      const Configuration configuration(count);
      _tile_loadconfig(&configuration);
      configured = count;
    }
    body(row, Sums{reinterpret_cast<char*>(c + row * stride),
                   stride * static_cast<int64_t>(sizeof(float)), count > tile_rows});
  }
  _tile_release();
}

/// What is read later, fetched into the second-level cache a few lines at a time meanwhile: the
/// units wait for memory more than they multiply.
class Ahead {
 public:
  /// `bytes` from `from` on, in about `turns` turns; none without `from`.
  Ahead(const void* from, int64_t bytes, int64_t turns)
      : next_(static_cast<const char*>(from)),
        left_(from ? (bytes + line - 1) / line : 0),
        at_once_((left_ + turns - 1) / turns) {}

  void fetch() {
    const int64_t lines = at_once_ < left_ ? at_once_ : left_;
    for (int64_t i = 0; i < lines; ++i, next_ += line) _mm_prefetch(next_, _MM_HINT_T1);
    left_ -= lines;
  }

 private:
  static constexpr int64_t line = 64;
  const char* next_;
  int64_t left_, at_once_;
};

}  // namespace
}  // namespace selfcal::amx
