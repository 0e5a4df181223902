// Quantization, packing and tiles of the product of float32 rows and int8 weights, one per instruction set. Plain
// pointers only: see simd.h.
#pragma once

#include <cstdint>

namespace slap_fast {

// Rows of x, quantized: `values` [rows, padded depth] of `Int8Kernel::value_bytes`, 64-byte aligned.
struct Int8Rows {
  const void* values;
  const float* scales;  // [rows]
  std::int64_t rows;
};

// Packed weights [columns, depth]; all but `panels` and `starts` are of the caller.
struct Int8Weights {
  const std::int8_t* panels;   // [ceil(columns / lanes), padded depth / group, lanes, group], zero-filled
  const std::int32_t* starts;  // [columns rounded up to lanes]: what a sum begins with
  const float* scales;         // [columns]
  const float* bias;           // [columns]; nullable
  std::int64_t columns, depth;
};

struct Int8Kernel {
  const char* name;
  std::int64_t lanes;        // columns of a panel
  std::int64_t group;        // depth that one instruction sums; packed depth is zero-padded to a multiple of it
  std::int64_t value_bytes;  // of a quantized value of x
  void (*pack)(const std::int8_t* weight, std::int64_t columns, std::int64_t depth, std::int8_t* panels,
               std::int32_t* starts);
  // Each row is scaled so that its largest magnitude becomes 127. A row with a NaN or an infinity has the scale NaN.
  void (*quantize)(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t depth, void* values,
                   float* scales);
  // out[r, c] = dot(x[r], weight[c]) for columns [first, last); `first` is a multiple of `lanes`. The dot product is
  // exact in int32, and rounded by its conversion to float and its two scales.
  void (*multiply)(const Int8Rows& rows, const Int8Weights& weights, std::int64_t first, std::int64_t last, float* out,
                   std::int64_t stride);
};

#define SLAP_FAST_INT8_KERNEL(isa)             \
  namespace isa {                              \
  extern const Int8Kernel int8_product_kernel; \
  }

SLAP_FAST_INT8_KERNEL(baseline)
SLAP_FAST_INT8_KERNEL(avx2)
SLAP_FAST_INT8_KERNEL(avx2_vnni)
SLAP_FAST_INT8_KERNEL(avx512)
SLAP_FAST_INT8_KERNEL(avx512_vnni)

}  // namespace slap_fast
