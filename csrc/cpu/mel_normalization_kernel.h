// Passes over a block of frames of one clip, one table per instruction set.
#pragma once

#include <cstdint>

namespace slap_fast {

struct MelNormalizationKernels {
  // bin_max [n_mels] = max(bin_max, frames); NaN propagates.
  void (*update_max)(const float* frames, std::int64_t count, std::int64_t n_mels, float* bin_max);
  // sum [n_mels] += max(frame, floor) - center; add_square: its square.
  void (*add)(const float* frames, std::int64_t count, std::int64_t n_mels, float floor, const double* center,
              double* sum);
  void (*add_square)(const float* frames, std::int64_t count, std::int64_t n_mels, float floor, const double* center,
                     double* sum);
  // out = ((max(frame, floor) - center) / scale - mean) / deviation; a null `center` skips the inner normalization.
  void (*write)(const float* frames, std::int64_t count, std::int64_t n_mels, float floor, const double* center,
                const double* scale, float mean, float deviation, float* out);
};

namespace baseline {
MelNormalizationKernels mel_normalization_kernels();
}
namespace avx2 {
MelNormalizationKernels mel_normalization_kernels();
}
namespace avx512 {
MelNormalizationKernels mel_normalization_kernels();
}

}  // namespace slap_fast
