// Packing and micro-kernel interface of the matrix product, one per instruction set. Plain pointers only: see simd.h.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

// One operand, [lanes, depth]: lanes are rows of the left operand (M) or columns of the right one (N), depth is the
// summed dimension (K). Strides are in elements; one of them is 1.
struct ProductSide {
  DType dtype;
  const void* data;
  std::int64_t lanes, depth, lane_stride, depth_stride;
};

struct MatrixProductKernel {
  std::int64_t lanes;        // of a packed panel
  std::int64_t depth;        // packed depth is zero-padded to a multiple of this
  std::int64_t value_bytes;  // of a packed element
  // Packs lanes [first_lane, first_lane + lanes) of depth [first_depth, first_depth + depth) into panels [ceil(lanes /
  // kernel.lanes), padded depth, kernel.lanes], zero-filled outside the operand.
  void (*pack)(const ProductSide& side, std::int64_t first_lane, std::int64_t lanes, std::int64_t first_depth,
               std::int64_t depth, void* out);
  // out[r * stride + c] (+)= dot(left[r], right[c]) of packed operands. Each dot product is summed in order of depth,
  // independent of its position in the tile.
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
