// Operations against float64 references of the tensor library, and the numerical contract: the bits
// of a result depend neither on the number of threads nor on where the operands lie in memory.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/error.hpp"
#include "stages/kernels/ops.hpp"
#include "tests/stages/kernels_support.hpp"

namespace selfcal::kernels {
namespace {

class Kernels : public testing::Test {
 protected:
  static void SetUpTestSuite() { use_one_library_thread(); }
  Kernels() { at::manual_seed(7); }

  ThreadPool pool{3, use_one_library_thread};
  Context context{&pool};
};

/// Largest difference, in units of the reference's largest entry.
double distance(const at::Tensor& found, const at::Tensor& expected) {
  return ((found.to(at::kDouble) - expected).abs().max() / expected.abs().max()).item<double>();
}

/// One rounding of the result: half a unit in the last place of the largest entry, and float32
/// accumulation.
double tolerance(at::ScalarType dtype) { return dtype == at::kFloat ? 2e-6 : 0x1p-8; }

/// The same values `shift` elements off the alignment of a fresh tensor.
at::Tensor shifted(const at::Tensor& tensor, int64_t shift) {
  at::Tensor memory = at::empty({tensor.numel() + shift}, tensor.options());
  at::Tensor view = memory.slice(0, shift).view(tensor.sizes());
  view.copy_(tensor);
  return view;
}

using Operation = std::function<at::Tensor(const Context&, const std::vector<at::Tensor>&)>;

void expect_same_bits(const Operation& operation, const std::vector<at::Tensor>& operands) {
  const at::Tensor expected = operation({}, operands);
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads, use_one_library_thread);
    for (const int64_t shift : {0, 1, 8}) {
      std::vector<at::Tensor> moved;
      for (const auto& operand : operands)
        moved.push_back(shift ? shifted(operand, shift) : operand);
      EXPECT_TRUE(at::equal(operation({&pool}, moved), expected))
          << threads << " threads, shift " << shift;
    }
  }
}

TEST_F(Kernels, LinearEqualsReference) {
  const std::vector<std::array<int64_t, 3>> shapes = {
      {1, 5, 3}, {33, 64, 48}, {300, 576, 192}, {513, 100, 577}, {256, 576, 1536}, {700, 31, 1000}};
  for (const auto dtype : dtypes)
    for (const auto& [n, in, out] : shapes) {
      const auto x = random({n, in}, dtype), weight = random({out, in}, dtype),
                 bias = random({out}, dtype);
      const auto product = at::linear(x.to(at::kDouble), weight.to(at::kDouble));
      EXPECT_LT(distance(linear(context, x, weight), product), tolerance(dtype))
          << n << " " << in << " " << out;
      EXPECT_LT(distance(linear(context, x, weight, bias), product + bias.to(at::kDouble)),
                tolerance(dtype));
      const auto wide = linear(context, x, weight, {}, at::kFloat);
      EXPECT_EQ(wide.scalar_type(), at::kFloat);
      EXPECT_LT(distance(wide, product), 2e-6);
      EXPECT_LT(
          distance(linear(context, x, weight, bias, at::kFloat), product + bias.to(at::kDouble)),
          2e-6);
    }
}

TEST_F(Kernels, LinearOfNoRowsIsEmpty) {
  EXPECT_EQ(linear(context, at::empty({0, 8}), at::ones({4, 8})).sizes(), (at::IntArrayRef{0, 4}));
}

TEST_F(Kernels, LinearKeepsItsBits) {
  for (const auto dtype : dtypes)
    for (const auto& [n, in, out] : std::vector<std::array<int64_t, 3>>{{280, 576, 576},
                                                                        {280, 576, 192},
                                                                        {270, 576, 1536},
                                                                        {270, 1536, 576},
                                                                        {40, 77, 333},
                                                                        {64, 4096, 512}}) {
      expect_same_bits([](const Context& c, const auto& t) { return linear(c, t[0], t[1]); },
                       {random({n, in}, dtype), random({out, in}, dtype)});
      expect_same_bits([](const Context& c, const auto& t) { return linear(c, t[0], t[1], t[2]); },
                       {random({n, in}, dtype), random({out, in}, dtype), random({out}, dtype)});
    }
}

TEST_F(Kernels, LinearOfRowsOfAnySizeAndNotFinite) {
  // Row i is 2^(7 i - 140) times as large: no row suffers from the others.
  const auto weight = random({96, 200}, at::kBFloat16);
  at::Tensor x = at::randn({40, 200}), sizes = at::empty({40, 1});
  for (int64_t i = 0; i < 40; ++i)
    sizes[i] = i < 8 ? 0.0f : std::exp2(static_cast<float>(5 * i - 100));
  x = (x * sizes).to(at::kBFloat16);
  const at::Tensor found = linear(context, x, weight).to(at::kDouble);
  const at::Tensor expected = at::linear(x.to(at::kDouble), weight.to(at::kDouble));
  EXPECT_EQ(found.slice(0, 0, 8).abs().max().item<double>(), 0);
  for (int64_t i = 8; i < 40; ++i)
    EXPECT_LT(distance(found[i], expected[i]), tolerance(at::kBFloat16)) << i;
  x[11][3] = std::nanf("");
  x[12][3] = INFINITY;
  const at::Tensor spoilt = linear(context, x, weight);
  EXPECT_FALSE(spoilt[11].isfinite().any().item<bool>());
  EXPECT_FALSE(spoilt[12].isfinite().any().item<bool>());
  for (const int64_t i : {10, 13}) EXPECT_TRUE(at::equal(spoilt[i].to(at::kDouble), found[i])) << i;
}

TEST_F(Kernels, LinearRejectsShapesThatDoNotFit) {
  EXPECT_THROW(linear(context, at::ones({2, 3}), at::ones({2, 4})), Error);
  EXPECT_THROW(linear(context, at::ones({2, 3}), at::ones({2, 3}, at::kBFloat16)), Error);
  EXPECT_THROW(linear(context, at::ones({2, 3}, at::kDouble), at::ones({2, 3}, at::kDouble)),
               Error);
  EXPECT_THROW(linear(context, at::ones({2, 3}), at::ones({2, 3}), at::ones({3})), Error);
}

TEST_F(Kernels, RmsNormEqualsReference) {
  for (const auto dtype : dtypes)
    for (const int64_t columns : {1, 17, 64, 576}) {
      const auto x = random({130, columns}, dtype), weight = random({columns}, dtype);
      const auto wide = x.to(at::kDouble);
      const auto unit = wide * (wide * wide).mean({1}, true).add(1e-5).rsqrt();
      EXPECT_LT(distance(rms_norm(context, x, weight, 1e-5), unit * weight.to(at::kDouble)),
                tolerance(dtype));
      EXPECT_LT(
          distance(rms_norm(context, x, weight, 1e-5, 1.0), unit * (1 + weight.to(at::kDouble))),
          tolerance(dtype));
      expect_same_bits(
          [](const Context& c, const auto& t) { return rms_norm(c, t[0], t[1], 1e-5); },
          {x, weight});
    }
}

TEST_F(Kernels, LayerNormEqualsReference) {
  for (const auto dtype : dtypes)
    for (const int64_t columns : {17, 64, 576}) {
      const auto x = random({130, columns}, dtype) + 3, weight = random({columns}, dtype),
                 bias = random({columns}, dtype);
      const auto wide = x.to(at::kDouble), centred = wide - wide.mean({1}, true);
      const auto unit = centred * (centred * centred).mean({1}, true).add(1e-5).rsqrt();
      EXPECT_LT(distance(layer_norm(context, x, weight, bias, 1e-5),
                         unit * weight.to(at::kDouble) + bias.to(at::kDouble)),
                tolerance(dtype));
      expect_same_bits(
          [](const Context& c, const auto& t) { return layer_norm(c, t[0], t[1], t[2], 1e-5); },
          {x, weight, bias});
    }
}

at::Tensor activation_reference(Activation activation, const at::Tensor& x) {
  switch (activation) {
    case Activation::silu:
      return x * x.sigmoid();
    case Activation::gelu:
      return 0.5 * x * (1 + (x / std::sqrt(2.0)).erf());
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + (std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)).tanh());
    case Activation::relu:
      return x.clamp_min(0);
  }
  return {};
}

constexpr std::array activations = {Activation::silu, Activation::gelu, Activation::gelu_tanh,
                                    Activation::relu};

TEST_F(Kernels, ActivationsEqualReference) {
  for (const auto activation : activations)
    for (const auto dtype : dtypes) {
      const auto gate = (at::randn({777, 173}) * 4).to(dtype), up = random({777, 173}, dtype);
      const auto expected = activation_reference(activation, gate.to(at::kDouble));
      EXPECT_LT(distance(activate(context, activation, gate), expected), tolerance(dtype));
      EXPECT_LT(distance(activate(context, activation, gate, up), expected * up.to(at::kDouble)),
                tolerance(dtype));
      expect_same_bits(
          [=](const Context& c, const auto& t) { return activate(c, activation, t[0], t[1]); },
          {gate, up});
    }
}

TEST_F(Kernels, ActivationsAtTheEndsOfTheRange) {
  const auto x = at::tensor({-1e30f, -200.f, -88.f, 0.f, 88.f, 200.f, 1e30f, std::nanf("")});
  for (const auto activation : activations) {
    const auto y = activate(context, activation, x, at::ones({8}));
    EXPECT_TRUE(at::allclose(y.slice(0, 0, 7), x.slice(0, 0, 7).clamp_min(0), 1e-5, 1e-7)) << y;
    EXPECT_TRUE(std::isnan(y[7].item<float>()));
  }
}

TEST_F(Kernels, SoftCapEqualsReference) {
  const auto x = at::cat({at::randn({1001}) * 0.01, at::randn({1001}) * 100});
  auto y = x.clone();
  soft_cap(context, y, 30);
  const auto expected = 30 * (x.to(at::kDouble) / 30).tanh();
  EXPECT_TRUE(at::allclose(y.to(at::kDouble), expected, 1e-6, 0));
}

TEST_F(Kernels, AddRoundsOnce) {
  for (const auto dtype : dtypes) {
    const auto a = random({1000, 131}, dtype), b = random({1000, 131}, dtype);
    EXPECT_TRUE(at::equal(add(context, a, b), (a.to(at::kFloat) + b.to(at::kFloat)).to(dtype)));
    expect_same_bits([](const Context& c, const auto& t) { return add(c, t[0], t[1]); }, {a, b});
  }
}

TEST_F(Kernels, RotateTurnsPairsOfHalves) {
  for (const auto dtype : dtypes) {
    const int64_t tokens = 50, heads = 3, head_dim = 20,
                  half = 6;  // the last 8 entries of a head stay
    const auto x = random({tokens, heads, head_dim}, dtype), angle = at::randn({9, half});
    const auto positions = at::randint(9, {tokens}, at::kLong);
    const auto cosine = angle.cos(), sine = angle.sin();
    const auto c = cosine.index({positions}).unsqueeze(1), s = sine.index({positions}).unsqueeze(1);
    const auto a = x.slice(2, 0, half).to(at::kFloat),
               b = x.slice(2, half, 2 * half).to(at::kFloat);
    const auto expected =
        at::cat({a * c - b * s, b * c + a * s, x.slice(2, 2 * half).to(at::kFloat)}, 2);
    auto found = x.clone();
    rotate(context, found, positions, cosine, sine);
    EXPECT_LT(distance(found, expected.to(at::kDouble)), tolerance(dtype));
  }
}

at::Tensor attention_reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               double scale, const AttentionLimits& limits = {}) {
  const int64_t tokens = q.size(1), group = q.size(2) / k.size(2);
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble).transpose(1, 2); };
  const auto keys = wide(k).repeat_interleave(group, 1),
             values = wide(v).repeat_interleave(group, 1);
  auto mask = at::full({tokens, tokens}, -INFINITY, at::kDouble).triu(1);
  if (limits.window > 0)
    mask += at::full({tokens, tokens}, -INFINITY, at::kDouble).tril(-limits.window);
  auto scores = at::matmul(wide(q), keys.transpose(2, 3)) * scale;
  if (limits.soft_cap > 0) scores = limits.soft_cap * (scores / limits.soft_cap).tanh();
  return at::matmul((scores + mask).softmax(-1), values).transpose(1, 2);
}

TEST_F(Kernels, CausalAttentionEqualsReference) {
  const std::vector<std::array<int64_t, 5>> shapes = {{1, 1, 1, 1, 8},
                                                      {2, 24, 4, 2, 16},
                                                      {2, 512, 9, 3, 64},
                                                      {1, 700, 4, 4, 20},
                                                      {3, 300, 16, 1, 32}};
  for (const auto dtype : dtypes)
    for (const auto& [sequences, tokens, heads, groups, head_dim] : shapes) {
      const auto q = random({sequences, tokens, heads, head_dim}, dtype) * 2;
      const auto k = random({sequences, tokens, groups, head_dim}, dtype);
      const auto v = random({sequences, tokens, groups, head_dim}, dtype);
      const double scale = 1 / std::sqrt(static_cast<double>(head_dim));
      EXPECT_LT(
          distance(causal_attention(context, q, k, v, scale), attention_reference(q, k, v, scale)),
          tolerance(dtype))
          << tokens << " tokens, " << heads << " heads";
      expect_same_bits([&](const Context& c,
                           const auto& t) { return causal_attention(c, t[0], t[1], t[2], scale); },
                       {q, k, v});
    }
}

TEST_F(Kernels, LimitedAttentionEqualsReference) {
  for (const auto dtype : dtypes)
    for (const AttentionLimits limits :
         {AttentionLimits{1, 0}, AttentionLimits{100, 0}, AttentionLimits{257, 0},
          AttentionLimits{2000, 0}, AttentionLimits{0, 1.5}, AttentionLimits{40, 1.5}}) {
      const auto q = random({2, 700, 6, 20}, dtype) * 2, k = random({2, 700, 2, 20}, dtype),
                 v = random({2, 700, 2, 20}, dtype);
      const auto y = causal_attention(context, q, k, v, 0.5, limits);
      EXPECT_LT(distance(y, attention_reference(q, k, v, 0.5, limits)), tolerance(dtype))
          << "window " << limits.window << ", cap " << limits.soft_cap;
      expect_same_bits(
          [&](const Context& c, const auto& t) {
            return causal_attention(c, t[0], t[1], t[2], 0.5, limits);
          },
          {q, k, v});
      for (const int64_t last : {0, 39, 699}) {  // decoding of the last token
        const auto cache = [&](const at::Tensor& t) { return t.transpose(1, 2).contiguous(); };
        const auto step =
            decode_attention(context, q.select(1, last).contiguous(),
                             at::full({2}, last, at::kLong), cache(k), cache(v), 0.5, limits);
        EXPECT_LT(distance(step, y.select(1, last).to(at::kDouble)), tolerance(dtype));
      }
    }
}

TEST_F(Kernels, CausalAttentionSeesNoLaterToken) {
  const auto q = at::randn({1, 400, 2, 16}), k = at::randn({1, 400, 1, 16}),
             v = at::randn({1, 400, 1, 16});
  auto k_changed = k.clone(), v_changed = v.clone();
  k_changed.slice(1, 300).fill_(NAN);
  v_changed.slice(1, 300).fill_(7);
  const auto y = causal_attention(context, q, k, v, 0.25);
  EXPECT_TRUE(
      at::allclose(causal_attention(context, q, k_changed, v_changed, 0.25).slice(1, 0, 300),
                   y.slice(1, 0, 300), 0, 1e-6));
}

}  // namespace
}  // namespace selfcal::kernels
