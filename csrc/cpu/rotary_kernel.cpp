// Rotary embedding kernels; compiled once per instruction set.
#include "rotary_kernel.h"

#include "stored_lanes.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

void add_angles(std::int64_t count, const double* cos_a, const double* sin_a, const double* cos_b, const double* sin_b,
                float* __restrict cos, float* __restrict sin) {
  for (std::int64_t i = 0; i < count; ++i) {
    cos[i] = static_cast<float>(cos_a[i] * cos_b[i] - sin_a[i] * sin_b[i]);
    sin[i] = static_cast<float>(sin_a[i] * cos_b[i] + cos_a[i] * sin_b[i]);
  }
}

SLAP_FAST_INLINE void rotate_pairs(Lanes& first, Lanes& second, Lanes cos, Lanes sin) {
  const Lanes rotated = fms(first, cos, second * sin);
  second = fma(second, cos, first * sin);
  first = rotated;
}

// Reads both halves before writing either, so `out` may be `in`.
template <class Format>
void rotate_token(const typename Format::Stored* in, typename Format::Stored* out, std::int64_t heads,
                  std::int64_t in_stride, std::int64_t out_stride, const CosSin& cos_sin) {
  const std::int64_t half = cos_sin.half, whole = half - half % kLanes, tail = half - whole;
  for (std::int64_t axis = 0; axis < cos_sin.axes; ++axis) {
    const float *cosines = cos_sin.cos[axis], *sines = cos_sin.sin[axis];
    for (std::int64_t i = 0; i < whole; i += kLanes) {
      const Lanes cos = load_unaligned(cosines + i), sin = load_unaligned(sines + i);
      for (std::int64_t head = 0; head < heads; ++head) {
        const auto* from = in + head * in_stride + i;
        auto* to = out + head * out_stride + i;
        Lanes first = Format::load(from), second = Format::load(from + half);
        rotate_pairs(first, second, cos, sin);
        Format::store(to, first);
        Format::store(to + half, second);
      }
    }
    if (tail > 0) {
      const Lanes cos = load_partial<Float32>(cosines + whole, tail), sin = load_partial<Float32>(sines + whole, tail);
      for (std::int64_t head = 0; head < heads; ++head) {
        const auto* from = in + head * in_stride + whole;
        auto* to = out + head * out_stride + whole;
        Lanes first = load_partial<Format>(from, tail), second = load_partial<Format>(from + half, tail);
        rotate_pairs(first, second, cos, sin);
        store_partial<Format>(to, first, tail);
        store_partial<Format>(to + half, second, tail);
      }
    }
    in += 2 * half;
    out += 2 * half;
  }
}

template <class Format>
void rotate_stored(const void* in, void* out, std::int64_t heads, std::int64_t in_stride, std::int64_t out_stride,
                   const CosSin& cos_sin) {
  using Stored = typename Format::Stored;
  rotate_token<Format>(static_cast<const Stored*>(in), static_cast<Stored*>(out), heads, in_stride, out_stride,
                       cos_sin);
}

void rotate(DType dtype, const void* in, void* out, std::int64_t heads, std::int64_t in_stride, std::int64_t out_stride,
            const CosSin& cos_sin) {
  switch (dtype) {
    case DType::float32:
      return rotate_stored<Float32>(in, out, heads, in_stride, out_stride, cos_sin);
    case DType::bfloat16:
      return rotate_stored<BFloat16>(in, out, heads, in_stride, out_stride, cos_sin);
    case DType::float16:
      return rotate_stored<Float16>(in, out, heads, in_stride, out_stride, cos_sin);
  }
}

}  // namespace

RotaryKernels rotary_kernels() { return {add_angles, rotate}; }

}  // namespace slap_fast::SLAP_FAST_ISA
