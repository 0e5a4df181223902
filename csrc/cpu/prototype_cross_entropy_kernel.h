// Passes over rows of prototype scores, one table per instruction set. Rows are padded to a multiple of kRowMultiple.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

// Rows accumulated per pass, so that column state is loaded and stored once for all of them.
constexpr std::int64_t kRowsPerPass = 16;

// logits = scores * inverse_temperature - potential [padded]
struct RowLogits {
  float inverse_temperature;
  const float* potential;
};

struct RowLogSumExp {
  float max, sum;  // max(logits), sum(exp(logits - max))
};

struct ColumnState {
  float *max, *sum;  // running maximum and sum of exp(logit - max) per column
};

struct PairSums {
  float student, teacher;  // sum of exp(logit - max)
  float product;           // sum of exp(teacher logit - max) * (student logit - max)
};

struct PrototypeKernels {
  RowLogSumExp (*normalizer)(const float* row, std::int64_t padded, const RowLogits& params);
  // Accumulates logits - row_max - log_sum of up to kRowsPerPass rows into columns [begin, end), multiples of
  // kRowMultiple.
  void (*add_columns)(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t begin, std::int64_t end,
                      const RowLogits& params, const float* row_max, const float* log_sum, const ColumnState& columns);
  // With `keep`, exp(logit - max) overwrites both rows. Only the teacher has a potential.
  PairSums (*pair)(float* student, float* teacher, std::int64_t padded, float inverse_student_temperature,
                   const RowLogits& teacher_params, bool keep);
  // gradient = student * student_scale - teacher * teacher_scale. May alias `student` at the same start: no dtype is
  // wider than float32.
  void (*gradient)(const float* student, const float* teacher, std::int64_t padded, float student_scale,
                   float teacher_scale, DType dtype, void* gradient);
};

namespace baseline {
PrototypeKernels prototype_kernels();
}
namespace avx2 {
PrototypeKernels prototype_kernels();
}
namespace avx512 {
PrototypeKernels prototype_kernels();
}

}  // namespace slap_fast
