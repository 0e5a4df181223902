// Root mean square normalization of rows, of one tensor or of the sum of two, and its gradients.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

// Rows [rows, width] lie one after another; the weight is [width]. All but rstd is of one storage type, the mathematics
// is float32, and each result is rounded once. What is written overlaps nothing else.
struct RmsNormShape {
  DType dtype;
  std::int64_t rows, width;
};

struct RmsNormForward {
  const void* x;
  const void* residual;  // null where there is none
  const void* weight;
  float eps;
  void* sum;     // x + residual, as it is stored; unused without a residual
  void* normed;  // sum * rstd * weight
  float* rstd;   // [rows]: 1 / sqrt(mean(sum^2) + eps)
};

struct RmsNormBackward {
  const void* grad_normed;
  const void* grad_sum;  // what reached the sum by itself; null where nothing did
  const void* sum;
  const void* weight;
  const float* rstd;
  void* grad;         // of the sum, and so of x and of the residual
  void* grad_weight;  // [width]
};

// The bits of a row depend on that row alone; those of grad_weight on the rows and their number, not on the threads.
// Both throw std::invalid_argument for a negative size or an eps that is negative or NaN.
void rms_norm(const RmsNormShape& shape, const RmsNormForward& tensors, int threads);
void rms_norm_backward(const RmsNormShape& shape, const RmsNormBackward& tensors, int threads);

}  // namespace slap_fast
