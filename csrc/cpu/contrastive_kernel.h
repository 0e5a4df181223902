// Tile operations of the contrastive losses, one table per instruction set. Plain pointers only: see simd.h.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

// Similarities [rows, columns]; logit = scale * similarity + bias. Rows and all arrays over columns below are 64-byte
// aligned and padded to a multiple of 64 bytes; padding is ignored.
struct SimilarityTile {
  float* data;
  std::int64_t stride, rows, columns;
  float scale, bias;
};

// Per-row or per-column inputs of the softmax gradient. `loss` is log(sum(exp(logit - max))).
struct SoftmaxGradients {
  const float *max, *loss, *grad;
};

struct ContrastiveKernel {
  // The logit of one similarity, bitwise equal to that of the tile passes, so that equal similarities tie.
  float (*logit)(const SimilarityTile& tile, float similarity);
  // Maximum logits: writes row_max, updates column_max.
  void (*find_max)(const SimilarityTile& tile, float* row_max, float* column_max);
  // Sums of exp(logit - max) per row and column: writes row_sum, adds to column_sum.
  void (*sum_exponentials)(const SimilarityTile& tile, const float* row_max, const float* column_max, float* row_sum,
                           float* column_sum);
  // find_max, and the sum of log(1 + exp(logit)) per row.
  void (*sum_pair_losses)(const SimilarityTile& tile, float* row_max, float* column_max, float* row_loss);
  // Replaces similarities by gradients of logits, treating every pair as negative. Per row, `weighted` is the sum of
  // gradient * similarity and `total` the sum of gradients.
  void (*softmax_gradients)(const SimilarityTile& tile, const SoftmaxGradients& row, const SoftmaxGradients& column,
                            float* weighted, float* total);
  void (*sigmoid_gradients)(const SimilarityTile& tile, const float* row_grad, float* weighted, float* total);
  // Rounds the tile to bfloat16, rows `stride` values apart, and adds each rounding error to the residual of its row
  // and column.
  void (*round_to_bfloat16)(const SimilarityTile& tile, std::uint16_t* out, std::int64_t stride, float* row_residual,
                            float* column_residual);
  // Merges (max, sum of exp(x - max)) pairs.
  void (*merge_log_sum_exp)(std::int64_t count, float* running_max, float* running_sum, const float* other_max,
                            const float* other_sum);
  // Rows are [width] of `dtype`. add_row: sum += factor * row; write_row: out = factor * sum.
  void (*add_row)(DType dtype, const void* row, std::int64_t width, float factor, float* sum);
  float (*dot)(DType dtype, const void* row, const float* other, std::int64_t width);
  void (*write_row)(DType dtype, const float* sum, std::int64_t width, float factor, void* out);
};

#define SLAP_FAST_CONTRASTIVE_KERNEL(isa)            \
  namespace isa {                                    \
  extern const ContrastiveKernel contrastive_kernel; \
  }

SLAP_FAST_CONTRASTIVE_KERNEL(baseline)
SLAP_FAST_CONTRASTIVE_KERNEL(avx2)
SLAP_FAST_CONTRASTIVE_KERNEL(avx512)
SLAP_FAST_CONTRASTIVE_KERNEL(avx512_bf16)

}  // namespace slap_fast
