// The kernels of decoding against float64 references, for every instruction set that this processor
// has.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "stages/kernels/cpu/few_rows.hpp"
#include "stages/kernels/cpu/matrix.hpp"

namespace selfcal::kernels {
namespace {

ThreadPool& threads() {
  static ThreadPool pool(2, use_one_library_thread);
  return pool;
}

at::Tensor random(at::IntArrayRef shape, at::ScalarType dtype) {
  return at::randn(shape).to(dtype);
}

/// Largest difference over the largest magnitude of the reference.
double relative_error(const at::Tensor& result, const at::Tensor& reference) {
  const auto expected = reference.to(at::kDouble);
  return ((result.to(at::kDouble) - expected).abs().max() / expected.abs().max()).item<double>();
}

/// linear_few_rows by one set of kernels.
at::Tensor linear_by(const VectorKernels& vectors, const at::Tensor& x, const at::Tensor& weight,
                     const at::Tensor& bias, at::ScalarType dtype) {
  const int64_t n = x.size(0), columns = x.size(1),
                lanes = (n + vectors.width - 1) / vectors.width * vectors.width;
  auto transposed = at::full({columns + vectors.width, lanes}, std::nan(""), at::kFloat);
  vectors.transpose(matrix_of(x), lanes, 0, columns, transposed.mutable_data_ptr<float>());
  auto result = at::full({n, weight.size(0)}, std::nan(""), dtype);
  for (int64_t tile = 0; tile * weight_tile < weight.size(0); ++tile)
    vectors.few_rows_tile(transposed.const_data_ptr<float>(), n, lanes, matrix_of(weight),
                          matrix_of(bias), tile, tile + 1, result.mutable_data_ptr(),
                          number_of(result));
  return result;
}

TEST(LinearFewRows, AgreesWithFloat64InEverySet) {
  at::manual_seed(1);
  for (auto dtype : {at::kFloat, at::kBFloat16}) {
    for (int64_t n : {1, 8, 11, 16, 17, 24, 31, 50}) {
      for (auto [in, out] :
           {std::pair<int64_t, int64_t>{1, 1}, {7, 5}, {64, 48}, {257, 97}, {576, 50}}) {
        const auto x = random({n, in}, dtype), weight = random({out, in}, dtype),
                   bias = random({out}, dtype);
        const auto expected = at::matmul(x.to(at::kDouble), weight.to(at::kDouble).t());
        for (int rank = 0; const auto* vectors = supported_kernels(rank); ++rank) {
          const auto plain = linear_by(*vectors, x, weight, {}, at::kFloat);
          EXPECT_LT(relative_error(plain, expected), 1e-6)
              << vectors->name << n << " " << in << " " << out;
          const auto biased = linear_by(*vectors, x, weight, bias, dtype);
          EXPECT_LT(relative_error(biased, expected + bias.to(at::kDouble)),
                    dtype == at::kFloat ? 1e-6 : 4e-3)
              << vectors->name << n << " " << in << " " << out;
        }
      }
    }
  }
}

TEST(LinearFewRows, RoundsOnce) {
  at::manual_seed(2);
  const auto x = random({16, 300}, at::kBFloat16), weight = random({100, 300}, at::kBFloat16);
  const auto sums = linear_few_rows({&threads()}, x, weight, {}, at::kFloat);
  EXPECT_TRUE(at::equal(linear_few_rows({&threads()}, x, weight), sums.to(at::kBFloat16)));
}

TEST(LinearFewRows, ARowDoesNotDependOnTheOthers) {
  at::manual_seed(3);
  const auto x = random({32, 700}, at::kBFloat16), weight = random({130, 700}, at::kBFloat16);
  const auto whole = linear_few_rows({&threads()}, x, weight, {}, at::kFloat);
  for (int64_t n : {1, 9, 16, 20})
    EXPECT_TRUE(at::equal(linear_few_rows({&threads()}, x.narrow(0, 5, n), weight, {}, at::kFloat),
                          whole.narrow(0, 5, n)));
}

TEST(LinearFewRows, KeepsNaNAndInfinity) {
  auto x = at::ones({2, 64}), weight = at::ones({3, 64});
  weight[1][7] = std::nan("");
  weight[2][9] = INFINITY;
  const auto y = linear_few_rows({&threads()}, x, weight, {}, at::kBFloat16).to(at::kFloat);
  EXPECT_EQ(y[0][0].item<float>(), 64);
  EXPECT_TRUE(std::isnan(y[1][1].item<float>()));
  EXPECT_TRUE(std::isinf(y[0][2].item<float>()));
}

TEST(LinearFewRows, DoesNotDependOnThreadsOrAlignment) {
  at::manual_seed(4);
  const auto x = random({16, 577}, at::kBFloat16), weight = random({1000, 577}, at::kBFloat16);
  const auto expected = linear_few_rows({&threads()}, x, weight);
  for (int count : {1, 4}) {
    ThreadPool pool(count, use_one_library_thread);
    for (int64_t shift : {0, 1, 7}) {
      auto room = at::zeros({weight.numel() + shift}, at::kBFloat16);
      auto moved = room.narrow(0, shift, weight.numel()).view_as(weight).copy_(weight);
      EXPECT_TRUE(at::equal(linear_few_rows({&pool}, x, moved), expected))
          << count << " threads, shift " << shift;
    }
  }
}

/// Softmax attention in float64, one query a sequence.
at::Tensor reference_attention(const at::Tensor& q, const at::Tensor& positions,
                               const at::Tensor& keys, const at::Tensor& values, double scale) {
  const int64_t group = q.size(1) / keys.size(1);
  auto result = at::empty(q.sizes(), at::kDouble);
  for (int64_t s = 0; s < q.size(0); ++s) {
    const int64_t tokens = positions[s].item<int64_t>() + 1;
    for (int64_t h = 0; h < q.size(1); ++h) {
      const auto k = keys[s][h / group].narrow(0, 0, tokens).to(at::kDouble);
      const auto v = values[s][h / group].narrow(0, 0, tokens).to(at::kDouble);
      const auto weights = at::softmax(at::mv(k, q[s][h].to(at::kDouble)) * scale, 0);
      result[s][h] = at::mv(v.t(), weights);
    }
  }
  return result;
}

TEST(DecodeAttention, AgreesWithFloat64) {
  at::manual_seed(5);
  for (auto dtype : {at::kFloat, at::kBFloat16}) {
    for (auto [heads, kv_heads, head_dim] :
         {std::array<int64_t, 3>{9, 3, 64}, {4, 4, 8}, {4, 1, 80}, {6, 2, 13}}) {
      const int64_t sequences = 5, capacity = 70;
      const auto q = random({sequences, heads, head_dim}, dtype);
      const auto keys = random({sequences, kv_heads, capacity, head_dim}, dtype);
      const auto values = random({sequences, kv_heads, capacity, head_dim}, dtype);
      const auto positions = at::tensor({0, 6, 7, 8, 69}, at::kLong);
      const auto result = decode_attention({&threads()}, q, positions, keys, values, 0.3);
      EXPECT_EQ(result.scalar_type(), dtype);
      EXPECT_LT(relative_error(result, reference_attention(q, positions, keys, values, 0.3)),
                dtype == at::kFloat ? 2e-6 : 4e-3);
    }
  }
}

/// Runs of heads of all lengths, dimensions with and without a rest, blocks of tokens and rests.
TEST(DecodeAttention, AgreesWithFloat64InEverySet) {
  at::manual_seed(8);
  for (int rank = 0; const auto* vectors = supported_kernels(rank); ++rank)
    for (const auto dtype : {at::kFloat, at::kBFloat16})
      for (const int64_t heads : {1, 2, 3, 4, 7})
        for (const int64_t head_dim : {20, 64, 144})
          for (const int64_t tokens : {1, 16, 39, 300}) {
            const auto q = random({1, heads, head_dim}, dtype),
                       keys = random({1, 1, tokens, head_dim}, dtype),
                       values = random({1, 1, tokens, head_dim}, dtype), result = at::empty_like(q);
            std::vector<float> scratch(
                static_cast<size_t>(vectors->attention_scratch(heads, tokens, head_dim)));
            vectors->attention_tile({q.const_data_ptr(), keys.const_data_ptr(),
                                     values.const_data_ptr(), result.mutable_data_ptr(),
                                     dtype == at::kFloat ? Number::float32 : Number::bfloat16,
                                     heads, tokens, head_dim, 0.3f, 0, scratch.data()});
            const auto expected =
                reference_attention(q, at::tensor({tokens - 1}, at::kLong), keys, values, 0.3);
            EXPECT_LT(relative_error(result, expected), dtype == at::kFloat ? 3e-6 : 6e-3)
                << vectors->name << " " << heads << " " << head_dim << " " << tokens;
          }
}

TEST(DecodeAttention, ReadsNothingBehindThePosition) {
  at::manual_seed(6);
  const auto q = random({2, 4, 16}, at::kFloat);
  auto keys = random({2, 2, 40, 16}, at::kFloat), values = random({2, 2, 40, 16}, at::kFloat);
  const auto positions = at::tensor({4, 19}, at::kLong);
  const auto expected = decode_attention({&threads()}, q, positions, keys, values, 1.0);
  for (auto* cache : {&keys, &values}) {
    (*cache)[0].narrow(1, 5, 35).fill_(std::nan(""));
    (*cache)[1].narrow(1, 20, 20).fill_(std::nan(""));
  }
  EXPECT_TRUE(at::equal(decode_attention({&threads()}, q, positions, keys, values, 1.0), expected));
}

TEST(DecodeAttention, HugeScoresAreExact) {
  auto q = at::full({1, 1, 8}, 100.0f), keys = at::zeros({1, 1, 3, 8}),
       values = at::zeros({1, 1, 3, 8});
  keys[0][0][1].fill_(100.0f);
  values[0][0][1].fill_(5.0f);
  const auto result =
      decode_attention({&threads()}, q, at::tensor({2}, at::kLong), keys, values, 1.0);
  EXPECT_TRUE(at::equal(result, at::full({1, 1, 8}, 5.0f)));
}

TEST(DecodeAttention, DoesNotDependOnThreads) {
  at::manual_seed(7);
  const auto q = random({16, 9, 64}, at::kBFloat16);
  const auto keys = random({16, 3, 50, 64}, at::kBFloat16),
             values = random({16, 3, 50, 64}, at::kBFloat16);
  const auto positions = at::full({16}, 49, at::kLong);
  const auto expected = decode_attention({&threads()}, q, positions, keys, values, 0.125);
  for (int count : {1, 4}) {
    ThreadPool pool(count, use_one_library_thread);
    EXPECT_TRUE(at::equal(decode_attention({&pool}, q, positions, keys, values, 0.125), expected));
  }
}

TEST(Exponentials, AgreeWithFloat64InEverySet) {
  const int64_t count = 1003;
  const auto logits =
      12 - at::arange(count, at::kFloat) / 8;  // exact, so that only the exponential rounds
  for (int rank = 0; const auto* vectors = supported_kernels(rank); ++rank) {
    auto weights = at::empty({count});
    std::vector<double> sums((count + exponential_block - 1) / exponential_block);
    EXPECT_EQ(vectors->maximum(logits.const_data_ptr<float>(), count), 12);
    vectors->exponentials(logits.const_data_ptr<float>(), count, 12, 1,
                          weights.mutable_data_ptr<float>(), sums.data());
    const auto exact = at::exp(logits.to(at::kDouble) - 12);
    const auto error = ((weights.to(at::kDouble) - exact) / exact).abs();
    EXPECT_LT(error.narrow(0, 0, 86 * 8).max().item<double>(), 2e-7) << vectors->name;
    EXPECT_EQ(weights.narrow(0, 86 * 8 + 1, count - 86 * 8 - 1).max().item<float>(), 0);
    for (size_t block = 0; block < sums.size(); ++block)
      EXPECT_NEAR(sums[block],
                  weights.to(at::kDouble).split(exponential_block)[block].sum().item<double>(),
                  1e-12);
  }
}

TEST(Exponentials, MaximumReportsNaN) {
  for (int rank = 0; const auto* vectors = supported_kernels(rank); ++rank) {
    for (int64_t where : {0, 5, 36}) {
      auto values = at::randn({37});
      values[where] = std::nan("");
      EXPECT_TRUE(std::isnan(vectors->maximum(values.const_data_ptr<float>(), 37)))
          << vectors->name;
    }
  }
}

}  // namespace
}  // namespace selfcal::kernels
