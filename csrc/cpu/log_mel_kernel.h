// A few frames side by side, by instruction set. Plain pointers only: see simd.h.
#pragma once

#include <cstdint>

#include "fft_plan_view.h"

namespace slap_fast {

// A sparse matrix whose rows are runs: row r has weights[offset[r]..offset[r + 1]) from column first[r] on.
struct BandedMatrixView {
  const std::int32_t* first;
  const std::int32_t* offset;
  const float* weights;
};

struct LogMelView {
  FftView fft;  // of n_fft / 2 points, even and odd samples paired; of n_fft if that is odd
  bool paired;
  std::int64_t n_fft, win_length, n_bins, n_mels;
  const std::int32_t* rows;      // [n_fft]: the row of the FFT's data that a sample goes to
  const float* window;           // [win_length]; halved if samples are paired
  const float* dc_weights;       // [fft.size, 2]: what a frame's mean adds to each row; null if it is not removed
  float dc_factor;               // what emphasis leaves of the mean
  const float* split;            // [fft.size, 2]: exp(-2 pi i k / n_fft)
  BandedMatrixView mel_of_bins;  // [n_mels rows, n_bins columns]
  BandedMatrixView bin_of_mels;  // transposed
  float preemphasis;
  bool magnitude, logarithm;
  float power_guard, log_floor, log_guard, log_scale, log_shift;
};

// Where a frame's mel values lie: blocks of `block` values, `block_stride` apart.
struct MelBlocks {
  std::int64_t block, block_stride;
};

// Samples worth fetching while the kernel computes; never read, so any address will do.
struct PrefetchHint {
  const float* samples;
  std::int64_t count;
};

struct LogMelKernel {
  std::int64_t lanes;

  // Floats of scratch, aligned to 64 bytes.
  std::int64_t (*scratch_floats)(const LogMelView& view);

  // windows [lanes] point at win_length samples each. Writes the frames of the first `count` lanes.
  void (*forward)(const LogMelView& view, const float* const* windows, float* const* mels, std::int64_t count,
                  MelBlocks blocks, PrefetchHint prefetch, float* scratch);

  // grads [lanes] point at n_mels values each; writes to grad_windows [lanes, win_length rounded up to 8].
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
