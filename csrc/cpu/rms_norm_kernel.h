// RMSNorm over a block of rows, one table per instruction set.
#pragma once

#include <cstdint>

#include "rms_norm.h"

namespace slap_fast {

struct RmsNormKernels {
  // Rows [begin, end).
  void (*forward)(const RmsNormShape& shape, const RmsNormForward& tensors, std::int64_t begin, std::int64_t end);
  // Rows [begin, end); writes their share of the weight gradient to `partial` [width].
  void (*backward)(const RmsNormShape& shape, const RmsNormBackward& tensors, std::int64_t begin, std::int64_t end,
                   float* partial);
  // grad_weight = sum over `count` of partials [count, width], in order.
  void (*reduce)(DType dtype, const float* partials, std::int64_t count, std::int64_t width, void* grad_weight);
};

namespace baseline {
RmsNormKernels rms_norm_kernels();
}
namespace avx2 {
RmsNormKernels rms_norm_kernels();
}
namespace avx512 {
RmsNormKernels rms_norm_kernels();
}

}  // namespace slap_fast
