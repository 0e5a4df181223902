// Log-mel of `lanes` frames at once, one per SIMD lane; one table per instruction set. Plain pointers only: see simd.h.
#pragma once

#include <cstdint>

#include "fft_plan_view.h"

namespace slap_fast {

// Sparse matrix with one contiguous band per row: row r holds weights[offset[r] : offset[r + 1]] from column first[r]
// on.
struct BandedMatrixView {
  const std::int32_t* first;
  const std::int32_t* offset;
  const float* weights;
};

struct LogMelView {
  FftView fft;  // n_fft / 2 points (even samples real, odd ones imaginary), or n_fft points if n_fft is odd
  bool paired;
  std::int64_t n_fft, win_length, n_bins, n_mels;
  const std::int32_t* rows;      // [n_fft]: vector of the FFT data that sample i is stored to
  const float* window;           // [win_length]; halved if paired
  const float* dc_weights;       // [fft.size, 2]: contribution of a unit mean to each point; null without DC removal
  float dc_factor;               // gain of the preemphasis filter at DC
  const float* split;            // [fft.size, 2]: exp(-2 pi i k / n_fft)
  BandedMatrixView mel_of_bins;  // [n_mels, n_bins]
  BandedMatrixView bin_of_mels;  // [n_bins, n_mels]
  float preemphasis;
  bool magnitude, logarithm;
  float power_guard, log_floor, log_guard, log_scale, log_shift;
};

// Output layout of a frame: blocks of `block` mel values, `block_stride` apart.
struct MelBlocks {
  std::int64_t block, block_stride;
};

// Samples to prefetch during the computation. Never dereferenced, so the address may be invalid.
struct PrefetchHint {
  const float* samples;
  std::int64_t count;
};

struct LogMelKernel {
  std::int64_t lanes;

  // Floats of 64-byte aligned scratch.
  std::int64_t (*scratch_floats)(const LogMelView& view);

  // windows [lanes]: pointers to win_length samples. Writes the frames of the first `count` lanes.
  void (*forward)(const LogMelView& view, const float* const* windows, float* const* mels, std::int64_t count,
                  MelBlocks blocks, PrefetchHint prefetch, float* scratch);

  // grads [lanes]: pointers to n_mels values. Writes grad_windows [lanes, round_up(win_length, 8)].
  void (*backward)(const LogMelView& view, const float* const* windows, const float* const* grads, float* grad_windows,
                   float* scratch);

  void (*scale_float)(const float* in, std::int64_t count, float scale, float* out);
  void (*scale_int16)(const std::int16_t* in, std::int64_t count, float scale, float* out);
  // out[i] = in[i] - coefficient * in[i - 1]
  void (*emphasize)(const float* in, std::int64_t count, float coefficient, float* out);
  void (*add)(const float* in, std::int64_t count, float* out);
};

namespace baseline {
LogMelKernel log_mel_kernel();
}
namespace avx2 {
LogMelKernel log_mel_kernel();
}
namespace avx512 {
LogMelKernel log_mel_kernel();
}

}  // namespace slap_fast
