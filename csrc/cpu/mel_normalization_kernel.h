// Sweeps over a block of frames of one clip, by instruction set.
#pragma once

#include <cstdint>

namespace slap_fast {

struct MelNormalizationKernels {
  // Raises largest [n_mels] to the frames' values; a NaN stays.
  void (*update_max)(const float* frames, std::int64_t count, std::int64_t n_mels, float* bin_max);
  // Adds max(frame, floor) - center to sum [n_mels], or its square.
  void (*add)(const float* frames, std::int64_t count, std::int64_t n_mels, float floor, const double* center,
              double* sum);
  void (*add_square)(const float* frames, std::int64_t count, std::int64_t n_mels, float floor, const double* center,
                     double* sum);
  // out = ((max(frame, floor) - center) / scale - mean) / deviation; without `center` out = (max(...) - mean) /
  // deviation
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
