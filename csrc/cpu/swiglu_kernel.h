// SwiGLU over a block of rows, one table per instruction set.
#pragma once

#include <cstdint>

#include "swiglu.h"

namespace slap_fast {

struct SwigluKernels {
  // Rows [begin, end).
  void (*forward)(const SwigluShape& shape, const void* gate_up, void* out, std::int64_t begin, std::int64_t end);
  void (*backward)(const SwigluShape& shape, const void* grad, const void* gate_up, void* grad_gate_up,
                   std::int64_t begin, std::int64_t end);
};

namespace baseline {
SwigluKernels swiglu_kernels();
}
namespace avx2 {
SwigluKernels swiglu_kernels();
}
namespace avx512 {
SwigluKernels swiglu_kernels();
}

}  // namespace slap_fast
