#include "rms_norm.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "aligned_array.h"
#include "isa.h"
#include "parallel.h"
#include "rms_norm_kernel.h"

namespace slap_fast {
namespace {

// Rows per task, independent of the thread count. Bounds the float32 terms summed into one partial weight gradient.
constexpr std::int64_t kRowsPerBlock = 32;
// Values that justify one more thread.
constexpr std::int64_t kValuesPerThread = 1 << 15;

RmsNormKernels chosen_kernels() { SLAP_FAST_DISPATCH(rms_norm_kernels()); }

void check(const RmsNormShape& shape) {
  if (shape.rows < 0 || shape.width < 0)
    throw std::invalid_argument("sizes are " + std::to_string(shape.rows) + " rows of " + std::to_string(shape.width) +
                                "; they cannot be negative");
}

std::int64_t blocks_of(const RmsNormShape& shape) { return (shape.rows + kRowsPerBlock - 1) / kRowsPerBlock; }

template <class Block>
void for_each_block(const RmsNormShape& shape, int threads, const Block& run) {
  const std::int64_t useful = shape.rows * shape.width / kValuesPerThread;
  threads = static_cast<int>(std::clamp<std::int64_t>(useful, 1, std::max(threads, 1)));
  parallel_for(blocks_of(shape), threads, [&](std::int64_t block, int) {
    run(block, block * kRowsPerBlock, std::min(shape.rows, (block + 1) * kRowsPerBlock));
  });
}

}  // namespace

void rms_norm(const RmsNormShape& shape, const RmsNormForward& tensors, int threads) {
  check(shape);
  if (!(tensors.eps >= 0.0f))
    throw std::invalid_argument("eps is " + std::to_string(tensors.eps) + "; it cannot be negative");
  const RmsNormKernels kernels = chosen_kernels();
  for_each_block(shape, threads, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    kernels.forward(shape, tensors, begin, end);
  });
}

void rms_norm_backward(const RmsNormShape& shape, const RmsNormBackward& tensors, int threads) {
  check(shape);
  const RmsNormKernels kernels = chosen_kernels();
  const AlignedArray<float> partials(blocks_of(shape) * shape.width);
  for_each_block(shape, threads, [&](std::int64_t block, std::int64_t begin, std::int64_t end) {
    kernels.backward(shape, tensors, begin, end, partials.get() + block * shape.width);
  });
  kernels.reduce(shape.dtype, partials.get(), blocks_of(shape), shape.width, tensors.grad_weight);
}

}  // namespace slap_fast
