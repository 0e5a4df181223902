// Loops over a row of scores. See simd.h for the namespace.
#pragma once

#include "stored_lanes.h"

namespace slap_fast::SLAP_FAST_ISA {

SLAP_FAST_INLINE float reduce_sum(Lanes x) {
  float sum = x[0];
  for (int i = 1; i < kLanes; ++i) sum += x[i];
  return sum;
}

SLAP_FAST_INLINE float reduce_max(Lanes x) {
  float result = x[0];
  for (int i = 1; i < kLanes; ++i) result = x[i] < result ? result : x[i];
  return result;
}

// Independent accumulators hide the latency of additions, and shorter sums lose less precision.
constexpr int kAccumulators = 4;
struct Accumulators {
  Lanes acc[kAccumulators];
  SLAP_FAST_INLINE explicit Accumulators(float start) {
    for (Lanes& lanes : acc) lanes = splat(start);
  }
  SLAP_FAST_INLINE Lanes sum() const { return (acc[0] + acc[1]) + (acc[2] + acc[3]); }
  SLAP_FAST_INLINE float maximum() const { return reduce_max(max(max(acc[0], acc[1]), max(acc[2], acc[3]))); }
};

// Calls step(i, accumulator) for each vector of `count` floats, a multiple of kLanes.
template <class Step>
SLAP_FAST_INLINE void for_vectors(std::int64_t count, Step step) {
  std::int64_t i = 0;
  for (; i + kAccumulators * kLanes <= count; i += kAccumulators * kLanes)
    for (int accumulator = 0; accumulator < kAccumulators; ++accumulator) step(i + accumulator * kLanes, accumulator);
  for (; i < count; i += kLanes) step(i, 0);
}

}  // namespace slap_fast::SLAP_FAST_ISA
