// The functions between the linear layers of an MLP, and the soft cap of scores and logits.
#include "stages/kernels/cpu/vector/kernels.hpp"
#include "stages/kernels/cpu/vector/map.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {
namespace {

/// x / (1 + exp(-z)).
SELFCAL_INLINE Floats times_sigmoid(Floats x, Floats z) {
  const Floats power = exponential(z > 0.0f ? -z : z);
  return x * (z > 0.0f ? Floats{} + 1.0f : power) / (1.0f + power);
}

template <int count>
SELFCAL_INLINE Floats polynomial(const float (&coefficients)[count], Floats x) {
  Floats value = all(coefficients[0]);
  for (int i = 1; i < count; ++i) value = value * x + coefficients[i];
  return value;
}

/// Odd rational approximation on [-4, 4], where float32 has reached 1 (Eigen's generic_fast_erf).
SELFCAL_INLINE Floats error_function(Floats x) {
  x = x > 4.0f ? all(4.0f) : x;
  x = x < -4.0f ? all(-4.0f) : x;
  const Floats square = x * x;
  constexpr float above[] = {-2.72614225801306e-10f, 2.77068142495902e-08f,  -2.10102402082508e-06f,
                             -5.69250639462346e-05f, -7.34990630326855e-04f, -2.95459980854025e-03f,
                             -1.60960333262415e-02f};
  constexpr float below[] = {-1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f,
                             -7.37332916720468e-03f, -1.42647390514189e-02f};
  return x * polynomial(above, square) / polynomial(below, square);
}

/// A polynomial near 0, where the quotient would cancel (Cephes tanhf).
SELFCAL_INLINE Floats hyperbolic_tangent(Floats x) {
  const Floats size = x > 0.0f ? x : -x, square = x * x;
  const Floats power = exponential(-2.0f * size);
  const Floats far = (1.0f - power) / (1.0f + power);
  constexpr float coefficients[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                                    1.33314422036e-1f, -3.33332819422e-1f};
  const Floats near = polynomial(coefficients, square) * square * x + x;
  return size < 0.625f ? near : (x > 0.0f ? far : -far);
}

struct Silu {
  SELFCAL_INLINE Floats of(Floats x) { return times_sigmoid(x, x); }
};
struct Gelu {
  SELFCAL_INLINE Floats of(Floats x) { return 0.5f * x * (1.0f + error_function(x * 0.70710678f)); }
};
/// 0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
  SELFCAL_INLINE Floats of(Floats x) {
    return times_sigmoid(x, 1.59576912f * (x + 0.044715f * x * x * x));
  }
};
struct Relu {
  SELFCAL_INLINE Floats of(Floats x) { return x < 0.0f ? Floats{} : x; }
};

template <class Function, class Stored>
SELFCAL_INLINE void apply(const Stored* x, const Stored* factor, int64_t n, Stored* y) {
  if (factor == nullptr)
    return map(
        n, [](Floats v) { return Function::of(v); }, y, x);
  map(
      n, [](Floats v, Floats f) { return Function::of(v) * f; }, y, x, factor);
}

}  // namespace

void activate(Activation activation, const void* x, const void* factor, Number number, int64_t n,
              void* y) {
  with_type(x, number, [&](const auto* from) {
    using Stored = stored_type<decltype(from)>;
    const auto* times = static_cast<const Stored*>(factor);
    auto* to = static_cast<Stored*>(y);
    switch (activation) {
      case Activation::silu:
        return apply<Silu>(from, times, n, to);
      case Activation::gelu:
        return apply<Gelu>(from, times, n, to);
      case Activation::gelu_tanh:
        return apply<GeluTanh>(from, times, n, to);
      case Activation::relu:
        return apply<Relu>(from, times, n, to);
    }
  });
}

void soft_cap(float* x, int64_t n, float cap) {
  map(
      n, [=](Floats v) { return cap * hyperbolic_tangent(v / cap); }, x, x);
}

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
