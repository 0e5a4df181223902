// Cross-entropy kernels; compiled once per instruction set.
#include "linear_cross_entropy_kernel.h"

#include "score_lanes.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

float sum(const float* row, std::int64_t columns) {
  Accumulators sums(0.0f);
  const std::int64_t whole = columns - columns % kLanes;
  for_vectors(whole, [&](std::int64_t i, int a) { sums.acc[a] += load_unaligned(row + i); });
  return reduce_sum(sums.sum() + load_partial<Float32>(row + whole, columns - whole));
}

RowExponentials exponentials(float* row, std::int64_t padded, bool keep) {
  Accumulators maxima(-__builtin_inff());
  for_vectors(padded, [&](std::int64_t i, int a) { maxima.acc[a] = max(maxima.acc[a], load_unaligned(row + i)); });
  const float row_max = maxima.maximum();
  const Lanes shift = splat(row_max);
  Accumulators sums(0.0f);
  if (keep) {
    for_vectors(padded, [&](std::int64_t i, int a) {
      const Lanes e = exponential(load_unaligned(row + i) - shift);
      store_unaligned(row + i, e);
      sums.acc[a] += e;
    });
  } else {
    for_vectors(padded, [&](std::int64_t i, int a) { sums.acc[a] += exponential(load_unaligned(row + i) - shift); });
  }
  return {row_max, reduce_sum(sums.sum())};
}

template <class Format>
void write_gradient(const float* row, std::int64_t padded, float scale, float shift, std::int64_t target,
                    float at_target, typename Format::Stored* gradient) {
  const Lanes scales = splat(scale), shifts = splat(shift);
  for_vectors(padded,
              [&](std::int64_t i, int) { Format::store(gradient + i, fms(load_unaligned(row + i), scales, shifts)); });
  if (target >= 0) store_partial<Format>(gradient + target, splat(at_target), 1);
}

void gradient(const float* row, std::int64_t padded, float scale, float shift, std::int64_t target, float at_target,
              DType dtype, void* out) {
  switch (dtype) {
    case DType::float32:
      return write_gradient<Float32>(row, padded, scale, shift, target, at_target, static_cast<float*>(out));
    case DType::bfloat16:
      return write_gradient<BFloat16>(row, padded, scale, shift, target, at_target, static_cast<std::uint16_t*>(out));
    case DType::float16:
      return write_gradient<Float16>(row, padded, scale, shift, target, at_target, static_cast<std::uint16_t*>(out));
  }
}

}  // namespace

CrossEntropyKernels cross_entropy_kernels() { return {sum, exponentials, gradient}; }

}  // namespace slap_fast::SLAP_FAST_ISA
