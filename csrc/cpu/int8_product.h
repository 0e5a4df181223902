// Product of float32 rows and int8 weights, for inference.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "int8_product_kernel.h"

namespace slap_fast {

// Of the largest depth, sums of products of bytes fit into 32 bits.
constexpr std::int64_t kInt8MaxDepth = 65536;

// The kernels that this machine can run, the best one for the instruction set in use first.
std::vector<const Int8Kernel*> int8_kernels();

// Throws std::invalid_argument if this machine cannot run a kernel of that name.
const Int8Kernel& int8_kernel(const std::string& name);

// Bytes of `Int8Weights::panels`, and number of its `starts`.
std::int64_t int8_panel_bytes(const Int8Kernel& kernel, std::int64_t columns, std::int64_t depth);
std::int64_t int8_starts(const Int8Kernel& kernel, std::int64_t columns);

// out [rows, columns] = x [rows, depth] @ weights.T + bias; rows of x and of out are as many floats apart as the
// strides.
//
// Each row of x is quantized by itself to 127 steps on each side of zero: a row of the result depends on no other row,
// and the bits depend neither on the thread count nor on the kernel. A row with a NaN or an infinity becomes NaN.
// Throws std::invalid_argument for negative sizes or a depth above kInt8MaxDepth.
void int8_product(const Int8Kernel& kernel, const float* x, std::int64_t x_stride, std::int64_t rows,
                  const Int8Weights& weights, float* out, std::int64_t out_stride, int threads);

}  // namespace slap_fast
