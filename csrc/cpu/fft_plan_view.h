// What fft_lanes.h needs of an FftPlan: plain pointers, for units that are compiled once for each instruction set.
#pragma once

#include <cstdint>

namespace slap_fast {

struct FftStageView {
  std::int64_t radix;
  std::int64_t step;      // points between the legs of a butterfly
  const float* twiddles;  // [step, radix - 1, 2]: exp(-2 pi i j q / (radix step)), real part first
  const float* roots;     // [radix, 2]: exp(-2 pi i q / radix)
};

struct FftView {
  std::int64_t size;
  std::int64_t stages;
  const FftStageView* stage;
  const std::int32_t* slots;  // [size]: where frequency k stands after the forward transform
  std::int64_t block;       // points between two gaps of one slot: the legs of the first stage never share a cache set
  std::int64_t slot_count;  // points and gaps
  std::int64_t max_radix;
};

}  // namespace slap_fast
