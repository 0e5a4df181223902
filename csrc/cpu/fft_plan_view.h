// FftPlan as plain pointers, for units compiled once per instruction set.
#pragma once

#include <cstdint>

namespace slap_fast {

struct FftStageView {
  std::int64_t radix;
  std::int64_t step;      // points between legs of a butterfly
  const float* twiddles;  // [step, radix - 1, 2]: exp(-2 pi i j q / (radix step)), real part first
  const float* roots;     // [radix, 2]: exp(-2 pi i q / radix)
};

struct FftView {
  std::int64_t size;
  std::int64_t stages;
  const FftStageView* stage;
  const std::int32_t* slots;  // [size]: slot of frequency k after the forward transform
  std::int64_t block;         // points between one-slot gaps, which keep first-stage legs in different cache sets
  std::int64_t slot_count;    // including gaps
  std::int64_t max_radix;
};

}  // namespace slap_fast
