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

}  // namespace selfcal::kernels::SELFCAL_INSTRUCTIONS
