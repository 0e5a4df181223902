// Rotation of one token, one table per instruction set.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

// Cosines and sines [half] of each axis at one position.
struct CosSin {
  std::int64_t axes, half;
  const float *cos[2], *sin[2];
};

struct RotaryKernels {
  // cos(a + b) and sin(a + b) for `count` angle pairs, from the cosines and sines of a and b.
  void (*add_angles)(std::int64_t count, const double* cos_a, const double* sin_a, const double* cos_b,
                     const double* sin_b, float* cos, float* sin);
  // One token: [heads, axes * 2 * half].
  void (*rotate)(DType dtype, const void* in, void* out, std::int64_t heads, std::int64_t in_stride,
                 std::int64_t out_stride, const CosSin& cos_sin);
};

namespace baseline {
RotaryKernels rotary_kernels();
}
namespace avx2 {
RotaryKernels rotary_kernels();
}
namespace avx512 {
RotaryKernels rotary_kernels();
}

}  // namespace slap_fast
