// Sinkhorn-Knopp and the self-distillation loss, from scores over prototypes.
#pragma once

#include <cstdint>

#include "score_rows.h"

namespace slap_fast {

// logits = scores / temperature - potential [columns]; without a potential, of nothing.
struct PrototypeLogits {
  float temperature;
  const float* potential;
};

// Adds the mass of each prototype over these tokens to what `largest` and `sum` [columns] hold of others: the mass is
// exp(largest + potential) * sum, and (-inf, 0) where no token has come. With a potential, each token's logits are
// normalised first to a log-sum-exp of 0. Scores are left as they are but for the scratch beside them.
// The bits do not depend on the number of threads. Throws std::invalid_argument for sizes that do not fit.
void sinkhorn_masses(const ScoreRows& scores, const PrototypeLogits& params, float* column_max, double* column_sum,
                     int threads);

// Returns the sum over tokens of token_weight [rows] times the cross-entropy of softmax(student logits) under
// softmax(teacher logits), and writes its gradients over the student's scores; the teacher's are lost with them. Both
// have the same sizes.
double prototype_cross_entropy(const ScoreRows& student, float* teacher, float student_temperature,
                               const PrototypeLogits& teacher_params, const float* token_weight, GradDType grad_dtype,
                               int threads);

}  // namespace slap_fast
