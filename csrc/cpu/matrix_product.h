// Products of matrices of float32 or 16-bit floats with sums in float32.
#pragma once

#include <cstdint>

#include "matrix_product_kernel.h"

namespace slap_fast {

// The kernel that serves operands of `dtype` with the chosen instruction set.
const MatrixProductKernel& chosen_matrix_product_kernel(DType dtype);

// out [rows, columns] (+)= left [rows, depth] times right [depth, columns]; a row of `out` is `stride` floats. The bits
// depend on the operands and the instruction set alone, an element's on its row and column alone.
// Throws std::invalid_argument for sizes and strides that do not fit.
void matrix_product(const ProductSide& left, const ProductSide& right, float* out, std::int64_t stride, bool accumulate,
                    int threads);

}  // namespace slap_fast
