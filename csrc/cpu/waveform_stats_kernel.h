// Statistics of one block of samples, one function per instruction set.
#pragma once

#include <cstdint>

namespace slap_fast {

struct BlockStats {
  double sum_of_squares;
  float peak;
  std::int32_t nonfinite;
};

constexpr std::int64_t kStatsBlock = 32768;  // samples: 128 KiB, half of a 256 KiB L2

namespace baseline {
BlockStats waveform_stats_block(const float* samples, std::int64_t count);
}
namespace avx2 {
BlockStats waveform_stats_block(const float* samples, std::int64_t count);
}
namespace avx512 {
BlockStats waveform_stats_block(const float* samples, std::int64_t count);
}

}  // namespace slap_fast
