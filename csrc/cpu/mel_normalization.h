// Per-clip normalization of log-mel frames.
#pragma once

#include <cstdint>

namespace slap_fast {

struct MelNormalization {
  bool limit_range = false;  // clamp values to at least the clip's maximum - dynamic_range
  float dynamic_range = 0.0f;
  bool standardize =
      false;  // each mel bin of a clip to mean 0 and standard deviation 1; `guard` is added to the deviation
  float guard = 0.0f;
  float mean = 0.0f, deviation = 1.0f;  // finally y = (y - mean) / deviation
};

// frames, normalized [total, n_mels], which may alias; cu_frames [clips + 1]. Sums are float64 over blocks that depend
// on the clip only: results are bitwise independent of the thread count and of other clips. A NaN propagates to its
// clip with limit_range, and to its mel bin of the clip with standardize. Throws std::invalid_argument for invalid
// cu_frames.
void normalize_mels(const float* frames, std::int64_t total, std::int64_t n_mels, const std::int64_t* cu_frames,
                    std::int64_t clips, const MelNormalization& params, float* normalized, int threads);

}  // namespace slap_fast
