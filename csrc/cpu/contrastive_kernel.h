// What the contrastive loss does to a tile of similarities, by instruction set. Plain pointers only: see simd.h.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

// Similarities [rows, columns]; a logit is scale * similarity + bias. Rows, and every array over columns below, are
// aligned to 64 bytes and hold a multiple of 64 bytes; what they hold beyond the columns counts for nothing.
struct SimilarityTile {
  float* data;
  std::int64_t stride, rows, columns;
  float scale, bias;
};

// What the gradient of a logit of the softmax needs of each row or of each column.
struct SoftmaxGradients {
  const float *max, *loss, *grad;
};

struct ContrastiveKernel {
  // The logit of a similarity, rounded as those of whole tiles are: equal similarities tie.
  float (*logit)(const SimilarityTile& tile, float similarity);
  // Largest logits: row_largest is written, column_largest raised.
  void (*find_max)(const SimilarityTile& tile, float* row_max, float* column_max);
  // Sums of exponentials of logits less the row's or the column's largest: row_sum is written, column_sum added to.
  void (*sum_exponentials)(const SimilarityTile& tile, const float* row_max, const float* column_max, float* row_sum,
                           float* column_sum);
  // find_largest, and sums over rows of log(1 + exp(logit)).
  void (*sum_pair_losses)(const SimilarityTile& tile, float* row_max, float* column_max, float* row_loss);
  // Similarities become gradients of logits, as if no pair were positive. Written for each row: the sum of gradients
  // times similarities, and of gradients.
  void (*softmax_gradients)(const SimilarityTile& tile, const SoftmaxGradients& row, const SoftmaxGradients& column,
                            float* weighted, float* total);
  void (*sigmoid_gradients)(const SimilarityTile& tile, const float* row_grad, float* weighted, float* total);
  // The tile in bfloat16, a row every `stride` values. What rounding took is added to its row and its column.
  void (*round_to_bfloat16)(const SimilarityTile& tile, std::uint16_t* out, std::int64_t stride, float* row_residual,
                            float* column_residual);
  // Largest values and sums of exponentials relative to them, joined with those of more.
  void (*merge_log_sum_exp)(std::int64_t count, float* running_max, float* running_sum, const float* other_max,
                            const float* other_sum);
  // sum += factor * row; the dot product; out = factor * sum. Rows hold `width` of `dtype`.
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
