// Tiled forward and backward pass of the contrastive losses over logits = scale * audio @ text.T + bias.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

struct ContrastiveInputs {
  DType dtype;
  const void *audio, *text;  // [rows, width], [columns, width]; unit last stride
  std::int64_t rows, columns, width, audio_stride, text_stride;
  float scale, bias;
  bool sigmoid;                              // pairwise sigmoid loss; false: softmax over rows and columns
  std::int64_t offset;                       // row i's positive is column offset + i, if it exists,
  const std::int64_t *audio_ids, *text_ids;  // or, with both ids, every column with the same id
  std::int64_t chunk_size;                   // maximum rows per chunk; 0: automatic
};

// Outputs; defined by ContrastiveBackend.forward in slap_fast/ops/contrastive/call.py.
struct ContrastiveSums {
  float *row_loss, *column_loss, *row_positive;  // [rows], [columns], [rows]
  float *row_stats, *column_best;                // [4, rows], [2, columns]
};

struct ContrastiveGradients {
  const float *grad_row, *grad_column, *grad_positive;  // with respect to row_loss, column_loss, row_positive
  const float *row_loss, *column_loss, *row_max, *column_max;
  void *grad_audio, *grad_text;  // shape and dtype of the inputs, contiguous
  double *grad_scale, *grad_bias;
};

// Both are bitwise independent of the thread count. They throw std::invalid_argument for inconsistent sizes.
void contrastive_sums(const ContrastiveInputs& inputs, const ContrastiveSums& sums, int threads);
void contrastive_sums_backward(const ContrastiveInputs& inputs, const ContrastiveGradients& gradients, int threads);

}  // namespace slap_fast
