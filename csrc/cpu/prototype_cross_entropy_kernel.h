// The loops over rows of scores over prototypes, by instruction set. Rows are a multiple of kRowMultiple long.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

// Rows that are summed over together: the state of a column is read and written once for them.
constexpr std::int64_t kRowsPerPass = 16;

// logits = scores * inverse_temperature - potential [padded]
struct RowLogits {
  float inverse_temperature;
  const float* potential;
};

struct RowLogSumExp {
  float max, sum;  // of the logits, and of exp(logits - largest)
};

struct ColumnState {
  float *max, *sum;  // of what came so far, and of exp(it - largest)
};

struct PairSums {
  float student, teacher, product;  // of exp(logits - largest), and of the teacher's times (student's logits - largest)
};

struct PrototypeKernels {
  RowLogSumExp (*normalizer)(const float* row, std::int64_t padded, const RowLogits& params);
  // Adds logits - largest - log_sum of up to kTogether rows to the columns begin .. end, multiples of kRowMultiple.
  void (*add_columns)(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t begin, std::int64_t end,
                      const RowLogits& params, const float* row_max, const float* log_sum, const ColumnState& columns);
  // With `keep` the exponentials replace both rows. The teacher's alone have a potential.
  PairSums (*pair)(float* student, float* teacher, std::int64_t padded, float inverse_student_temperature,
                   const RowLogits& teacher_params, bool keep);
  // gradient = student * student_scale - teacher * teacher_scale. It may begin where the student's row does, in any
  // storage: no element is wider than what has been read.
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
