// SwiGLU kernels; compiled once per instruction set.
#include "swiglu_kernel.h"

#include "stored_lanes.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

SLAP_FAST_INLINE Lanes gated(Lanes gate, Lanes up) { return gate * sigmoid(gate) * up; }

struct Gradients {
  Lanes gate, up;
};

// silu(x) = x s and silu'(x) = s (1 + x (1 - s)), s = sigmoid(x).
SLAP_FAST_INLINE Gradients gradients(Lanes grad, Lanes gate, Lanes up) {
  const Lanes s = sigmoid(gate);
  const Lanes slope = s * fma(gate, 1.0f - s, splat(1.0f));
  return {grad * up * slope, grad * (gate * s)};
}

template <class Format>
void forward_rows(const SwigluShape& shape, const void* gate_up, void* out, std::int64_t begin, std::int64_t end) {
  using Stored = typename Format::Stored;
  const std::int64_t width = shape.width, whole = width - width % kLanes, tail = width - whole;
  for (std::int64_t row = begin; row < end; ++row) {
    const Stored *gate = static_cast<const Stored*>(gate_up) + 2 * row * width, *up = gate + width;
    Stored* to = static_cast<Stored*>(out) + row * width;
    for (std::int64_t i = 0; i < whole; i += kLanes)
      Format::store(to + i, gated(Format::load(gate + i), Format::load(up + i)));
    if (tail > 0)
      store_partial<Format>(
          to + whole, gated(load_partial<Format>(gate + whole, tail), load_partial<Format>(up + whole, tail)), tail);
  }
}

template <class Format>
void backward_rows(const SwigluShape& shape, const void* grad, const void* gate_up, void* grad_gate_up,
                   std::int64_t begin, std::int64_t end) {
  using Stored = typename Format::Stored;
  const std::int64_t width = shape.width, whole = width - width % kLanes, tail = width - whole;
  for (std::int64_t row = begin; row < end; ++row) {
    const Stored* from = static_cast<const Stored*>(grad) + row * width;
    const Stored *gate = static_cast<const Stored*>(gate_up) + 2 * row * width, *up = gate + width;
    Stored *grad_gate = static_cast<Stored*>(grad_gate_up) + 2 * row * width, *grad_up = grad_gate + width;
    for (std::int64_t i = 0; i < whole; i += kLanes) {
      const Gradients result = gradients(Format::load(from + i), Format::load(gate + i), Format::load(up + i));
      Format::store(grad_gate + i, result.gate);
      Format::store(grad_up + i, result.up);
    }
    if (tail > 0) {
      const Gradients result =
          gradients(load_partial<Format>(from + whole, tail), load_partial<Format>(gate + whole, tail),
                    load_partial<Format>(up + whole, tail));
      store_partial<Format>(grad_gate + whole, result.gate, tail);
      store_partial<Format>(grad_up + whole, result.up, tail);
    }
  }
}

void forward(const SwigluShape& shape, const void* gate_up, void* out, std::int64_t begin, std::int64_t end) {
  switch (shape.dtype) {
    case DType::float32:
      return forward_rows<Float32>(shape, gate_up, out, begin, end);
    case DType::bfloat16:
      return forward_rows<BFloat16>(shape, gate_up, out, begin, end);
    case DType::float16:
      return forward_rows<Float16>(shape, gate_up, out, begin, end);
  }
}

void backward(const SwigluShape& shape, const void* grad, const void* gate_up, void* grad_gate_up, std::int64_t begin,
              std::int64_t end) {
  switch (shape.dtype) {
    case DType::float32:
      return backward_rows<Float32>(shape, grad, gate_up, grad_gate_up, begin, end);
    case DType::bfloat16:
      return backward_rows<BFloat16>(shape, grad, gate_up, grad_gate_up, begin, end);
    case DType::float16:
      return backward_rows<Float16>(shape, grad, gate_up, grad_gate_up, begin, end);
  }
}

}  // namespace

SwigluKernels swiglu_kernels() { return {forward, backward}; }

}  // namespace slap_fast::SLAP_FAST_ISA
