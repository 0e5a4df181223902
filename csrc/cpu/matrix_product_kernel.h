// Operands packed for the micro-kernel, and the product of two of them, by instruction set. Plain pointers only: see
// simd.h.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

// One side of a product: `lanes` rows of the left or columns of the right side, of `depth` elements each, over which
// the product sums. One of the strides is 1; they count elements.
struct ProductSide {
  DType dtype;
  const void* data;
  std::int64_t lanes, depth, lane_stride, depth_stride;
};

struct MatrixProductKernel {
  std::int64_t lanes;        // of a panel
  std::int64_t depth;        // what is packed is padded to a multiple of it with zeros
  std::int64_t value_bytes;  // of what is packed
  // Packs lanes first_lane .. first_lane + lanes and as many elements of each from first_depth on: panels of
  // MatrixProductKernel::lanes lanes, [lanes / panel, depth, panel] rounded up. What lies beyond the side is zero.
  void (*pack)(const ProductSide& side, std::int64_t first_lane, std::int64_t lanes, std::int64_t first_depth,
               std::int64_t depth, void* out);
  // out[r][c] (+)= the sum over depth of left[r] times right[c], both packed; a row is `stride` floats. Every sum is in
  // the order of its depth, wherever it stands.
  void (*multiply)(const void* left, const void* right, std::int64_t rows, std::int64_t columns, std::int64_t depth,
                   float* out, std::int64_t stride, bool accumulate);
};

#define SLAP_FAST_MATRIX_PRODUCT_KERNEL(isa)              \
  namespace isa {                                         \
  extern const MatrixProductKernel matrix_product_kernel; \
  }

SLAP_FAST_MATRIX_PRODUCT_KERNEL(baseline)
SLAP_FAST_MATRIX_PRODUCT_KERNEL(avx2)
SLAP_FAST_MATRIX_PRODUCT_KERNEL(avx512)
SLAP_FAST_MATRIX_PRODUCT_KERNEL(avx512_bf16)

}  // namespace slap_fast
