// The gate of a SwiGLU MLP: silu(gate) * up of rows that hold both, silu(x) = x / (1 + exp(-x)).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

struct SwigluShape {
  DType dtype;
  std::int64_t rows, width;
};

// [rows, width] of `out` from [rows, 2 * width] of `gate_up`, gate first; both contiguous.
// The mathematics is float32, rounded once; a value's bits depend on its own gate and up alone.
// Throws std::invalid_argument for a negative size.
void swiglu(const SwigluShape& shape, const void* gate_up, void* out, int threads);

// The gradient [rows, 2 * width] of gate_up from that of the result, [rows, width].
void swiglu_backward(const SwigluShape& shape, const void* grad, const void* gate_up, void* grad_gate_up, int threads);

}  // namespace slap_fast
