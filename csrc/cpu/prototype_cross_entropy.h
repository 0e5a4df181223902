// Sinkhorn-Knopp and the self-distillation loss over precomputed prototype scores.
#pragma once

#include <cstdint>

#include "score_rows.h"

namespace slap_fast {

// logits = scores / temperature - potential [columns]; a null potential is zero.
struct PrototypeLogits {
  float temperature;
  const float* potential;
};

// Accumulates the mass of each prototype over these tokens into column_max, column_sum [columns]: mass = exp(column_max
// + potential) * column_sum, initially (-inf, 0). With a potential, each token's logits are first normalized to a
// log-sum-exp of 0. Overwrites only the scratch columns of the scores. Bitwise independent of the thread count. Throws
// std::invalid_argument for invalid sizes.
void sinkhorn_masses(const ScoreRows& scores, const PrototypeLogits& params, float* column_max, double* column_sum,
                     int threads);

// Returns the sum over tokens of token_weight [rows] * H(softmax(teacher logits), softmax(student logits)). Its
// gradients overwrite the student's scores; the teacher's scores, of the same layout, are then destroyed.
double prototype_cross_entropy(const ScoreRows& student, float* teacher, float student_temperature,
                               const PrototypeLogits& teacher_params, const float* token_weight, GradDType grad_dtype,
                               int threads);

}  // namespace slap_fast
