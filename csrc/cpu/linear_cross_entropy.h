// The cross-entropy of tokens from their logits.
#pragma once

#include <cstdint>

#include "score_rows.h"

namespace slap_fast {

// The loss of one token, of x [columns] and its target t, with the smoothing s and the coefficient z, is
// lse(x) - (1 - s) x_t - s mean(x) + z lse(x)^2.
struct TokenLoss {
  double label_smoothing, z_loss;
};

// Returns the sum of the losses of rows with `target` [rows], and writes their gradients over the logits. A row whose
// target is outside [0, columns) is NaN, as is its gradient. The bits do not depend on the number of threads.
// Throws std::invalid_argument for sizes that do not fit.
double linear_cross_entropy(const ScoreRows& logits, const std::int64_t* target, const TokenLoss& loss,
                            GradDType grad_dtype, int threads);

}  // namespace slap_fast
