// Packed waveforms to log-mel frames or patches, and the gradient back to the waveform.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fft_plan.h"
#include "log_mel_kernel.h"
#include "log_mel_spec.h"

namespace slap_fast {

// `clips` clips end to end. cu_seqlens and cu_frames [clips + 1] rise from 0 to the samples and to the frames.
struct PackedWaveform {
  const float* floats = nullptr;         // [samples]; either this
  const std::int16_t* int16s = nullptr;  // or this
  std::int64_t samples = 0;
  const std::int64_t* cu_seqlens = nullptr;
  const std::int64_t* cu_frames = nullptr;
  std::int64_t clips = 0;
  std::int64_t frames = 0;
};

// Patches of `frames` x `mels` values, time first within a patch; tokens of one column in time stand together, lowest
// frequency first. Frames that fill a clip's last column hold `padding`; masked values hold `mask_value`.
struct PatchLayout {
  std::int64_t frames = 0, mels = 0;
  float padding = 0.0f, mask_value = 0.0f;
  const std::uint8_t* time_masked = nullptr;  // [frames of all clips], or null
  const std::uint8_t* mel_masked = nullptr;   // [clips, n_mels], or null
};

// Immutable once made, and so shared by any number of threads. The bits of a frame depend on its samples alone, those
// of a gradient on its clip alone. Everything is checked and nothing is read or written outside the arrays.
class LogMel {
 public:
  // Throws std::invalid_argument for numbers that contradict each other or tables of another size.
  explicit LogMel(LogMelSpec spec);

  // mels [frames, n_mels]
  void forward(const PackedWaveform& waveform, float* mels, int threads) const;

  // patches [tokens, form.frames * form.mels], where a clip has ceil(frames / form.frames) * n_mels / form.mels tokens
  void patches(const PackedWaveform& waveform, const PatchLayout& layout, float* patches, std::int64_t tokens,
               int threads) const;

  // grad_mels [frames, n_mels], grad_waveform [samples]. Mel values at or below the floor have no gradient.
  void backward(const PackedWaveform& waveform, const float* grad_mels, float* grad_waveform, int threads) const;

 private:
  struct BandedMatrix {
    std::vector<std::int32_t> first, offset;
    std::vector<float> weights;
    BandedMatrixView view() const { return {first.data(), offset.data(), weights.data()}; }
  };
  static BandedMatrix banded_matrix(const std::vector<float>& matrix, std::int64_t rows, std::int64_t columns,
                                    bool transposed);
  void check(const PackedWaveform& waveform) const;

  LogMelSpec spec_;
  std::unique_ptr<FftPlan> fft_;
  std::vector<std::int32_t> rows_;
  std::vector<float> window_, dc_weights_, split_;
  BandedMatrix mel_of_bins_, bin_of_mels_;
  LogMelView view_{};
};

}  // namespace slap_fast
