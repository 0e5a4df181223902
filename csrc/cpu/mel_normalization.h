// The part of a log-mel convention that looks at a clip as a whole.
#pragma once

#include <cstdint>

namespace slap_fast {

struct MelNormalization {
  bool limit_range = false;  // raise values to at least the clip's largest less `dynamic_range`
  float dynamic_range = 0.0f;
  bool standardize = false;  // each mel bin of a clip to mean 0 and deviation 1, with `guard` added to the deviation
  float guard = 0.0f;
  float mean = 0.0f, deviation = 1.0f;  // y = (y - mean) / deviation, at the end
};

// frames and normalized [total, n_mels], cu_frames [clips + 1]; the two may be the same array. Sums are in double over
// blocks that depend on the clip alone: the bits are the same for any thread count and any batch. A NaN reaches what it
// is compared with: its clip with limit_range, its mel bin of the clip with standardize.
// Throws std::invalid_argument unless cu_frames rises from 0 to total.
void normalize_mels(const float* frames, std::int64_t total, std::int64_t n_mels, const std::int64_t* cu_frames,
                    std::int64_t clips, const MelNormalization& params, float* normalized, int threads);

}  // namespace slap_fast
