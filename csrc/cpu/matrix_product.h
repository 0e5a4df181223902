// Matrix product of float32 or 16-bit operands with float32 accumulation.
#pragma once

#include <cstdint>

#include "matrix_product_kernel.h"

namespace slap_fast {

// The kernel for operands of `dtype` in the instruction set in use.
const MatrixProductKernel& chosen_matrix_product_kernel(DType dtype);

// out [rows, columns] (+)= left [rows, depth] @ right [depth, columns]; rows of `out` are `stride` floats apart.
// Deterministic for an instruction set: each element depends on its row of `left` and column of `right` only, not on
// the thread count. Throws std::invalid_argument for inconsistent sizes or strides.
void matrix_product(const ProductSide& left, const ProductSide& right, float* out, std::int64_t stride, bool accumulate,
                    int threads);

}  // namespace slap_fast
