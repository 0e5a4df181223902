// SwiGLU activation silu(gate) * up, with silu(x) = x / (1 + exp(-x)).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

struct SwigluShape {
  DType dtype;
  std::int64_t rows, width;
};

// gate_up [rows, 2 * width] with the gate first, out [rows, width]; both contiguous. Arithmetic is float32, rounded
// once. Throws std::invalid_argument for a negative size.
void swiglu(const SwigluShape& shape, const void* gate_up, void* out, int threads);

// grad [rows, width] of `out` to grad_gate_up [rows, 2 * width].
void swiglu_backward(const SwigluShape& shape, const void* grad, const void* gate_up, void* grad_gate_up, int threads);

}  // namespace slap_fast
