// Host-side plan of a log-mel pass (forward or backward): sizes and tables read by every block.
#pragma once

#include <cstdint>
#include <vector>

#include "dft.h"
#include "log_mel_spec.h"

namespace slap_fast::cuda {

struct alignas(8) Tap {
  int word;  // offset of the sample in the staged rows of frame 0
  float window;
};

struct alignas(8) MelWeight {
  int word;  // of the bin's power
  float weight;
};

struct alignas(16) SpectrumWeight {
  int real_word;
  int imag_word;  // equal to real_word if the bin is real
  float weight;
  int unused;
};

struct alignas(8) BinWeight {
  int mel;
  float weight;
};

// A frame's n_fft samples form a [steps, columns] matrix: sample n is in column n % columns. Columns are transformed
// first; bin k then comes from row k % steps, or from row steps - k % steps of the mirrored bin. A block processes
// `frames` frames; shared memory is [words, frames]. Samples are staged in rows of one hop, `pitch` apart to avoid bank
// conflicts.
struct LogMelSizes {
  int n_fft, win_length, n_mels;
  std::int64_t hop_length, first_sample;
  int steps, columns, frames, threads;
  int overlap;     // staged rows covered by a frame
  int row_length;  // used samples per row
  int pitch, rows;
  int mel_pitch;       // floats between frames of mel values
  std::int64_t owned;  // samples written per backward block
  // Offsets of shared-memory sections, in floats.
  int spectrum, samples, partials, mean, head, tail, owned_gradient, shared_floats;

  Padding padding;
  float input_scale, frame_preemphasis, clip_preemphasis;
  bool remove_dc_offset, magnitude, logarithm;
  float power_guard, log_floor, log_guard, log_scale, log_shift;
};

// taps [columns, steps]; roots exp(-2 pi i m / n_fft), or twiddles [rows, columns] if in_registers; mel filters in CSR
// form by mel (for powers and for complex spectra) and by bin.
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
  bool in_registers = false;  // uses the RegisterTransform of this n_fft
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

// Plan for `shared_bytes` of shared memory per block. Throws std::invalid_argument if the spec is inconsistent or does
// not fit.
LogMelPlan plan_log_mel(const LogMelSpec& spec, bool backward, std::int64_t shared_bytes);

}  // namespace slap_fast::cuda
