// Cross-entropy with label smoothing and z-loss over precomputed logits.
#pragma once

#include <cstdint>

#include "score_rows.h"

namespace slap_fast {

// Per token, with logits x [columns], target t, label smoothing s and z-loss z: lse(x) - (1 - s) x_t - s mean(x) + z
// lse(x)^2.
struct TokenLoss {
  double label_smoothing, z_loss;
};

// Returns the sum of the token losses for `target` [rows]; gradients overwrite the logits. A target outside [0,
// columns) gives a NaN loss and gradient row. Bitwise independent of the thread count. Throws std::invalid_argument for
// invalid sizes.
double linear_cross_entropy(const ScoreRows& logits, const std::int64_t* target, const TokenLoss& loss,
                            GradDType grad_dtype, int threads);

}  // namespace slap_fast
