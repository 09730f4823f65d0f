// What each instruction set must define for its table.
#pragma once
#include "stages/kernels/cpu/vector_kernels.hpp"

namespace selfcal::kernels::SELFCAL_INSTRUCTIONS {

void transpose(const Matrix& x, int64_t lanes, int64_t first, int64_t count, float* result);
void few_rows_tile(const float* transposed, int64_t rows, int64_t lanes, const Matrix& weight,
                   const Matrix& bias, int64_t tile, int64_t following, void* result,
                   Number result_number);
int64_t attention_scratch(int64_t heads, int64_t tokens, int64_t head_dim);
void attention_tile(const AttentionTile& tile);
float maximum(const float* values, int64_t count);
void exponentials(const float* values, int64_t count, float shift, float scale, float* result,
                  double* block_sums);
void split(const Matrix& x, int64_t first, int64_t count, float* panels);
void multiply_panel(int64_t rows, int64_t depth, const float* a, int64_t a_stride,
                    const float* panel, float* c, int64_t c_stride, bool accumulate);
float to_whole(const void* x, Number number, int64_t n, int16_t* to);
void pack_whole_rows(const int16_t* rows, int64_t stride, int64_t count, int64_t pairs,
                     int32_t* packed);
void pack_whole_panel(const int16_t* rows, int64_t stride, int64_t count, int64_t pairs,
                      int32_t* panel);
void multiply_whole(int64_t rows, int64_t pairs, const int32_t* a, int64_t a_rows,
                    const int32_t* panel, int32_t* c, int64_t c_stride, bool accumulate);
void narrow_whole(const int32_t* sums, float step, const float* steps, const void* bias,
                  Number bias_number, int64_t n, void* y, Number number);
void sum_squares(const Matrix& x, int64_t first, int64_t count, double* sums);
void sum_sizes(const Matrix& x, int64_t first, int64_t count, double* sums);
bool columns_to_whole(const Matrix& x, int64_t first, int64_t count, const float* factors,
                      int32_t* panel);
void widen(const void* x, Number number, int64_t n, float factor, float* y);
void narrow(const float* x, const void* bias, Number bias_number, int64_t n, float factor, void* y,
            Number number);
void narrow_rows(int64_t rows, int64_t n, const float* x, int64_t x_stride, const void* bias,
                 Number bias_number, void* y, int64_t y_stride, Number number);
void split_in_two(const float* x, int64_t n, uint16_t* high, uint16_t* low);
void add(const void* a, const void* b, Number number, int64_t n, void* y);
void divide_sums(const int64_t* sums, int64_t n, double divisor, const double* units, double factor,
                 float* y);
void activate(Activation activation, const void* x, const void* factor, Number number, int64_t n,
              void* y);
void soft_cap(float* x, int64_t n, float cap);
void rms_norm_row(const void* x, const void* weight, Number number, int64_t n, float epsilon,
                  float offset, void* y);
void layer_norm_row(const void* x, const void* weight, const void* bias, Number number, int64_t n,
                    float epsilon, void* y);
void rotate_head(void* x, Number number, const float* cosine, const float* sine, int64_t half);
float weigh(float* scores, int64_t visible, int64_t count, float floor, float* total);
bool all_finite16(const uint16_t* x, int64_t n, uint16_t exponent);
bool all_finite32(const uint32_t* x, int64_t n, uint32_t exponent);

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
