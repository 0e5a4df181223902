// Padded rows of scores: the output of a matrix product and the input of a fused loss.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "dtype.h"

namespace slap_fast {

// Floats. A multiple of every kLanes, so that kernels read whole vectors.
constexpr std::int64_t kRowMultiple = 16;

// [rows, stride], of which [rows, columns] is valid. Columns up to the next multiple of kRowMultiple are scratch.
struct ScoreRows {
  float* data;
  std::int64_t rows, columns, stride;

  float* row(std::int64_t i) const { return data + i * stride; }
  std::int64_t padded() const { return (columns + kRowMultiple - 1) / kRowMultiple * kRowMultiple; }
  void pad(std::int64_t i, float value) const {
    for (std::int64_t column = columns; column < padded(); ++column) row(i)[column] = value;
  }
};

// Dtype of the gradients, which overwrite the scores in place, each row at the start of its scores; nullopt: none.
using GradDType = std::optional<DType>;

inline void check_scores(const ScoreRows& scores) {
  if (scores.rows < 0 || scores.columns < 1)
    throw std::invalid_argument("scores are " + std::to_string(scores.rows) + " rows of " +
                                std::to_string(scores.columns) + " columns; pass at least 0 rows and 1 column");
  if (scores.stride % kRowMultiple != 0 || scores.stride < scores.columns)
    throw std::invalid_argument("the stride of scores is " + std::to_string(scores.stride) +
                                "; it must be a multiple of " + std::to_string(kRowMultiple) + ", at least the " +
                                std::to_string(scores.columns) + " columns");
}

}  // namespace slap_fast
