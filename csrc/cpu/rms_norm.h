// RMSNorm of x or of x + residual, and its gradients.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

// Tensors are contiguous [rows, width], the weight is [width]; all but rstd have one dtype. Arithmetic is float32 and
// each result is rounded once. Outputs must not overlap anything.
struct RmsNormShape {
  DType dtype;
  std::int64_t rows, width;
};

struct RmsNormForward {
  const void* x;
  const void* residual;  // nullable
  const void* weight;
  float eps;
  void* sum;     // x + residual, rounded to dtype; unused without a residual
  void* normed;  // sum * rstd * weight
  float* rstd;   // [rows]: 1 / sqrt(mean(sum^2) + eps)
};

struct RmsNormBackward {
  const void* grad_normed;
  const void* grad_sum;  // gradient of the `sum` output; nullable
  const void* sum;
  const void* weight;
  const float* rstd;
  void* grad;         // with respect to the sum, hence to x and to residual
  void* grad_weight;  // [width]
};

// A row's bits depend on that row only; all results are bitwise independent of the thread count. Both throw
// std::invalid_argument for a negative size or an eps that is negative or NaN.
void rms_norm(const RmsNormShape& shape, const RmsNormForward& tensors, int threads);
void rms_norm_backward(const RmsNormShape& shape, const RmsNormBackward& tensors, int threads);

}  // namespace slap_fast
