// Sizes and tables of one log-mel pass, forward or backward: made on the host, read by every block on the device.
#pragma once

#include <cstdint>
#include <vector>

#include "dft.h"
#include "log_mel_spec.h"

namespace slap_fast::cuda {

struct alignas(8) Tap {
  int word;  // of a window's sample among the staged rows of frame 0
  float window;
};

struct alignas(8) MelWeight {
  int word;  // of its bin's power
  float weight;
};

struct alignas(16) SpectrumWeight {
  int real_word;
  int imag_word;  // real_word again where the bin is a real number
  float weight;
  int unused;
};

struct alignas(8) BinWeight {
  int mel;
  float weight;
};

// A frame's n_fft samples are a matrix of `steps` x `columns`: sample n is in column n % columns. Columns are
// transformed first; bin k then comes from row k % steps, or from row steps - k % steps of the mirrored bin.
// A block works on `frames` frames side by side: in shared memory, a word of every frame, then the next word of every
// frame. Samples are staged as rows of one hop each, `pitch` apart, so that the lanes of a warp meet different banks.
struct LogMelSizes {
  int n_fft, win_length, n_mels;
  std::int64_t hop_length, first_sample;
  int steps, columns, frames, threads;
  int overlap;     // rows that a frame reaches into
  int row_length;  // samples of a row that are used
  int pitch, rows;
  int mel_pitch;       // of a frame's mel values in shared memory
  std::int64_t owned;  // samples of a clip that a block of the backward pass writes
  // Sections of shared memory, in floats.
  int spectrum, samples, partials, mean, head, tail, owned_gradient, shared_floats;

  Padding padding;
  float input_scale, frame_preemphasis, clip_preemphasis;
  bool remove_dc_offset, magnitude, logarithm;
  float power_guard, log_floor, log_guard, log_scale, log_shift;
};

// [columns][steps] taps; roots of unity exp(-2 pi i m / n_fft) or, for `in_registers`, the twiddles [rows][columns];
// mel filters by mel (CSR), for powers and for complex spectra, and by bin.
struct LogMelTables {
  const Tap* taps;
  const Complex* roots;
  const int* mel_begin;
  const MelWeight* mel_weights;
  const SpectrumWeight* spectrum_weights;
  const int* bin_begin;
  const BinWeight* bin_weights;
};

struct LogMelPlan {
  LogMelSizes sizes{};
  bool in_registers = false;  // there is a kernel compiled for this n_fft
  std::vector<Tap> taps;
  std::vector<Complex> roots;
  std::vector<int> mel_begin, bin_begin;
  std::vector<MelWeight> mel_weights;
  std::vector<SpectrumWeight> spectrum_weights;
  std::vector<BinWeight> bin_weights;

  LogMelTables tables() const {
    return {taps.data(),      roots.data(),      mel_begin.data(), mel_weights.data(), spectrum_weights.data(),
            bin_begin.data(), bin_weights.data()};
  }
};

// The plan that fits into `shared_bytes` of shared memory for each block.
// Throws std::invalid_argument for a spec that contradicts itself or cannot fit.
LogMelPlan plan_log_mel(const LogMelSpec& spec, bool backward, std::int64_t shared_bytes);

}  // namespace slap_fast::cuda
