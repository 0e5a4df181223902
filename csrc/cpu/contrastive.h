// Sums over the logits scale * audio @ text.T + bias of the contrastive losses, and their gradients, by tiles.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

struct ContrastiveInputs {
  DType dtype;
  const void *audio, *text;  // [rows, width] and [columns, width], rows a stride apart
  std::int64_t rows, columns, width, audio_stride, text_stride;
  float scale, bias;
  bool sigmoid;                              // pairwise losses, else the softmax of rows and columns
  std::int64_t offset;                       // row i's positive is column offset + i, if there is such a one,
  const std::int64_t *audio_ids, *text_ids;  // or where neither is null, each column of its id
  std::int64_t chunk_size;                   // at most; 0: any
};

// What ContrastiveBackend.forward in slap_fast/ops/contrastive/call.py returns.
struct ContrastiveSums {
  float *row_loss, *column_loss, *row_positive;  // [rows], [columns], [rows]
  float *row_stats, *column_best;                // [4, rows], [2, columns]
};

struct ContrastiveGradients {
  const float *grad_row, *grad_column, *grad_positive;  // of what the sums begin with
  const float *row_loss, *column_loss, *row_max, *column_max;
  void *grad_audio, *grad_text;  // as the inputs, contiguous
  double *grad_scale, *grad_bias;
};

// The bits of both depend on the inputs and the instruction set alone, not on threads.
// Throws std::invalid_argument for sizes that do not fit.
void contrastive_sums(const ContrastiveInputs& inputs, const ContrastiveSums& sums, int threads);
void contrastive_sums_backward(const ContrastiveInputs& inputs, const ContrastiveGradients& gradients, int threads);

}  // namespace slap_fast
