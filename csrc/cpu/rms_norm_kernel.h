// A block of rows, by instruction set.
#pragma once

#include <cstdint>

#include "rms_norm.h"

namespace slap_fast {

struct RmsNormKernels {
  // The rows [begin, end) of the tensors.
  void (*forward)(const RmsNormShape& shape, const RmsNormForward& tensors, std::int64_t begin, std::int64_t end);
  // The same; what they add to the weight's gradient is written to `partial` [width], instead of to grad_weight.
  void (*backward)(const RmsNormShape& shape, const RmsNormBackward& tensors, std::int64_t begin, std::int64_t end,
                   float* partial);
  // The sum of [count, width] partial gradients, in their order.
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
