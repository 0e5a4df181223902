// Waveform statistics of a block; compiled once per instruction set.
#include "waveform_stats_kernel.h"

#include "simd.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

// Sample i of a block is summed in lane i % kLanes and the lanes in a fixed order, for every vector width. Squares of
// floats are exact in double (48 of 53 bits), so all instruction sets give the same bits.
constexpr int kLanes = 32;
constexpr int kVectors = kLanes / Floats::width;

struct Lanes {
  Doubles squares[2 * kVectors];
  Floats peak[kVectors];
  std::int32_t nonfinite = 0;

  void add(const float* samples) {
    for (int i = 0; i < kVectors; ++i) {
      const Floats magnitude = Floats::load(samples + i * Floats::width).finite_magnitude(nonfinite);
      squares[2 * i].add_square(magnitude.low());
      squares[2 * i + 1].add_square(magnitude.high());
      peak[i].update_max(magnitude);
    }
  }
};

}  // namespace

BlockStats waveform_stats_block(const float* samples, std::int64_t count) {
  Lanes lanes;
  std::int64_t done = 0;
  for (; done + kLanes <= count; done += kLanes) lanes.add(samples + done);
  if (done < count) {
    float tail[kLanes] = {};  // zeros change neither sum nor peak
    for (std::int64_t i = done; i < count; ++i) tail[i - done] = samples[i];
    lanes.add(tail);
  }

  double squares[kLanes];
  float peaks[kLanes];
  for (int i = 0; i < 2 * kVectors; ++i) lanes.squares[i].store(squares + i * Doubles::width);
  for (int i = 0; i < kVectors; ++i) lanes.peak[i].store(peaks + i * Floats::width);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      squares[i] += squares[i + half];
      peaks[i] = peaks[i] < peaks[i + half] ? peaks[i + half] : peaks[i];
    }
  }
  return {squares[0], peaks[0], lanes.nonfinite};
}

}  // namespace slap_fast::SLAP_FAST_ISA
