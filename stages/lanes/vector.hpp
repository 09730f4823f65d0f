// A vector of float32 lanes in the compiler's own vector type, as wide as the instruction set that
// is compiled for. Everything here has internal linkage: the same names are compiled for several
// instruction sets.
#pragma once
#include <cstdint>

#include "stages/lanes/lanes.hpp"
#include "stages/lanes/number.hpp"

namespace selfcal::lanes {
namespace {

#if defined(__AVX512F__)
constexpr int width = 16;
#elif defined(__AVX2__)
constexpr int width = 8;
#else
constexpr int width = 4;
#endif

/// Columns of a packed panel: two vectors of rows times these fill the registers.
constexpr int panel = width == 16 ? 12 : 6;

using Vector = float __attribute__((vector_size(width * sizeof(float))));
using Doubles = double __attribute__((vector_size(width * sizeof(float))));
using Integers = int32_t __attribute__((vector_size(width * sizeof(int32_t))));
template <>
struct BitsOf<Vector> {
  using type = uint32_t __attribute__((vector_size(width * sizeof(uint32_t))));
};
using Unaligned = float __attribute__((vector_size(width * sizeof(float)), aligned(4), may_alias));
using UnalignedDoubles =
    double __attribute__((vector_size(width * sizeof(float)), aligned(8), may_alias));
using UnalignedIntegers =
    int32_t __attribute__((vector_size(width * sizeof(int32_t)), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* into, Vector value) { *reinterpret_cast<Unaligned*>(into) = value; }
inline Doubles load(const double* from) { return *reinterpret_cast<const UnalignedDoubles*>(from); }
inline void store(double* into, Doubles value) {
  *reinterpret_cast<UnalignedDoubles*>(into) = value;
}
inline Integers load(const int32_t* from) {
  return *reinterpret_cast<const UnalignedIntegers*>(from);
}
inline void store(int32_t* into, Integers value) {
  *reinterpret_cast<UnalignedIntegers*>(into) = value;
}
inline Vector all(float value) { return all<Vector>(value); }

}  // namespace
}  // namespace selfcal::lanes
