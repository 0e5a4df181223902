// The loops over a row of logits, by instruction set. Rows are a multiple of kRowMultiple long.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

struct RowExponentials {
  float max;  // of the row
  float sum;  // of exp(x - largest)
};

struct CrossEntropyKernels {
  float (*sum)(const float* row, std::int64_t columns);
  // With `keep` the exponentials replace the row.
  RowExponentials (*exponentials)(float* row, std::int64_t padded, bool keep);
  // gradient = row * scale - shift; but `at_target` at `target`, where that is not negative. It may begin where the row
  // does, in any storage: no element is wider than what has been read.
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
