// Peak, mean square and non-finite count of each clip of a packed waveform, in one pass.
#pragma once

#include <cstdint>

namespace slap_fast {

// Per clip, over its finite samples: max |x| and mean x^2 (0 if there are none), and the number of non-finite samples.
//
// waveform [total], cu_seqlens [clips + 1], outputs [clips]. Sums are float64 in an order that depends on the clip
// only: results are bitwise independent of thread count, instruction set and other clips. Throws std::invalid_argument
// for invalid cu_seqlens, before any sample is read.
void waveform_stats(const float* waveform, std::int64_t total, const std::int64_t* cu_seqlens, std::int64_t clips,
                    float* peak, double* mean_square, std::int64_t* nonfinite, int threads);

}  // namespace slap_fast
