// Loops over a row of scores. As in simd.h, everything lives in a namespace of the
// instruction set.
#pragma once

#include "stored_lanes.h"

namespace slap_fast::SLAP_FAST_ISA {

SLAP_FAST_INLINE float sum_of(Lanes x) {
  float sum = x[0];
  for (int i = 1; i < kLanes; ++i) sum += x[i];
  return sum;
}

SLAP_FAST_INLINE float largest_of(Lanes x) {
  float largest = x[0];
  for (int i = 1; i < kLanes; ++i) largest = x[i] < largest ? largest : x[i];
  return largest;
}

// kSlots accumulators hide the latency of adding to one; each also adds fewer rounding errors up.
constexpr int kSlots = 4;
struct Slots {
  Lanes of[kSlots];
  SLAP_FAST_INLINE explicit Slots(float start) {
    for (Lanes& lanes : of) lanes = splat(start);
  }
  SLAP_FAST_INLINE Lanes sum() const { return (of[0] + of[1]) + (of[2] + of[3]); }
  SLAP_FAST_INLINE float largest() const {
    return largest_of(at_least(at_least(of[0], of[1]), at_least(of[2], of[3])));
  }
};

// step(i, slot) for each vector of `count` floats, a multiple of kLanes; the slot is a constant at each place.
template <class Step>
SLAP_FAST_INLINE void for_vectors(std::int64_t count, Step step) {
  std::int64_t i = 0;
  for (; i + kSlots * kLanes <= count; i += kSlots * kLanes)
    for (int slot = 0; slot < kSlots; ++slot) step(i + slot * kLanes, slot);
  for (; i < count; i += kLanes) step(i, 0);
}

}  // namespace slap_fast::SLAP_FAST_ISA
