// Peak, energy and bad samples of each clip of a packed waveform, in one pass.
#pragma once

#include <cstdint>

namespace slap_fast {

// For each of `clips` clips, over its finite samples: the largest |x| and the mean of x * x (0 where there is none),
// and the number of samples that are not finite.
//
// waveform [total], cu_seqlens [clips + 1], outputs [clips]. Sums are in double, over blocks and lanes that depend on
// the clip alone: the bits are the same for any thread count, any instruction set and any batch.
// Throws std::invalid_argument unless cu_seqlens rises from 0 to total; nothing is read outside the arrays.
void waveform_stats(const float* waveform, std::int64_t total, const std::int64_t* cu_seqlens, std::int64_t clips,
                    float* peak, double* mean_square, std::int64_t* nonfinite, int threads);

}  // namespace slap_fast
