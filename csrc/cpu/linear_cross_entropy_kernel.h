// Passes over one row of logits, one table per instruction set. Rows are padded to a multiple of kRowMultiple.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

struct RowExponentials {
  float max;  // max(x)
  float sum;  // sum(exp(x - max))
};

struct CrossEntropyKernels {
  float (*sum)(const float* row, std::int64_t columns);
  // With `keep`, exp(x - max) overwrites the row.
  RowExponentials (*exponentials)(float* row, std::int64_t padded, bool keep);
  // gradient = row * scale - shift, except gradient[target] = at_target if target >= 0. May alias `row` at the same
  // start: no dtype is wider than float32.
  void (*gradient)(const float* row, std::int64_t padded, float scale, float shift, std::int64_t target,
                   float at_target, DType dtype, void* gradient);
};

namespace baseline {
CrossEntropyKernels cross_entropy_kernels();
}
namespace avx2 {
CrossEntropyKernels cross_entropy_kernels();
}
namespace avx512 {
CrossEntropyKernels cross_entropy_kernels();
}

}  // namespace slap_fast
