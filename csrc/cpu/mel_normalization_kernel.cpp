// Plain loops, vectorized by the compiler over mel bins; compiled once per instruction set.
#include "mel_normalization_kernel.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

// max(x, y); NaN if either is NaN.
inline float max_nan(float x, float y) {
  const float z = x <= y ? y : x;
  return y != y ? y : z;
}

void update_max(const float* frames, std::int64_t count, std::int64_t n_mels, float* __restrict bin_max) {
  for (const float* frame = frames; frame < frames + count * n_mels; frame += n_mels)
    for (std::int64_t mel = 0; mel < n_mels; ++mel) bin_max[mel] = max_nan(frame[mel], bin_max[mel]);
}

void add(const float* frames, std::int64_t count, std::int64_t n_mels, float floor, const double* __restrict center,
         double* __restrict sum) {
  for (const float* frame = frames; frame < frames + count * n_mels; frame += n_mels)
    for (std::int64_t mel = 0; mel < n_mels; ++mel)
      sum[mel] += static_cast<double>(max_nan(frame[mel], floor)) - center[mel];
}

void add_square(const float* frames, std::int64_t count, std::int64_t n_mels, float floor,
                const double* __restrict center, double* __restrict sum) {
  for (const float* frame = frames; frame < frames + count * n_mels; frame += n_mels) {
    for (std::int64_t mel = 0; mel < n_mels; ++mel) {
      const double centered = static_cast<double>(max_nan(frame[mel], floor)) - center[mel];
      sum[mel] += centered * centered;
    }
  }
}

// `out` may alias `frames`: each value is read before it is written.
void write(const float* frames, std::int64_t count, std::int64_t n_mels, float floor, const double* __restrict center,
           const double* __restrict scale, float mean, float deviation, float* out) {
  if (center == nullptr) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count * n_mels; ++i) out[i] = (max_nan(frames[i], floor) - mean) / deviation;
    return;
  }
  for (std::int64_t frame = 0; frame < count; ++frame, frames += n_mels, out += n_mels) {
#pragma GCC ivdep
    for (std::int64_t mel = 0; mel < n_mels; ++mel) {
      const double standard = (static_cast<double>(max_nan(frames[mel], floor)) - center[mel]) / scale[mel];
      out[mel] = (static_cast<float>(standard) - mean) / deviation;
    }
  }
}

}  // namespace

MelNormalizationKernels mel_normalization_kernels() { return {update_max, add, add_square, write}; }

}  // namespace slap_fast::SLAP_FAST_ISA
