#include "swiglu.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "parallel.h"
#include "swiglu_kernel.h"

namespace slap_fast {
namespace {

// Values per task, rounded to whole rows: enough to justify one more thread.
constexpr std::int64_t kValuesPerTask = 1 << 15;

SwigluKernels chosen_kernels() { SLAP_FAST_DISPATCH(swiglu_kernels()); }

template <class Block>
void for_each_block(const SwigluShape& shape, int threads, const Block& run) {
  if (shape.rows < 0 || shape.width < 0)
    throw std::invalid_argument("sizes are " + std::to_string(shape.rows) + " rows of " + std::to_string(shape.width) +
                                "; they cannot be negative");
  const std::int64_t rows = std::max<std::int64_t>(1, kValuesPerTask / std::max<std::int64_t>(shape.width, 1));
  parallel_for((shape.rows + rows - 1) / rows, threads,
               [&](std::int64_t task, int) { run(task * rows, std::min(shape.rows, (task + 1) * rows)); });
}

}  // namespace

void swiglu(const SwigluShape& shape, const void* gate_up, void* out, int threads) {
  const SwigluKernels kernels = chosen_kernels();
  for_each_block(shape, threads,
                 [&](std::int64_t begin, std::int64_t end) { kernels.forward(shape, gate_up, out, begin, end); });
}

void swiglu_backward(const SwigluShape& shape, const void* grad, const void* gate_up, void* grad_gate_up, int threads) {
  const SwigluKernels kernels = chosen_kernels();
  for_each_block(shape, threads, [&](std::int64_t begin, std::int64_t end) {
    kernels.backward(shape, grad, gate_up, grad_gate_up, begin, end);
  });
}

}  // namespace slap_fast
