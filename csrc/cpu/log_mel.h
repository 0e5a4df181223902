// Log-mel frames or patches of packed waveforms, and the gradient of the waveform.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fft_plan.h"
#include "log_mel_kernel.h"
#include "log_mel_spec.h"

namespace slap_fast {

// Packed clips. cu_seqlens and cu_frames [clips + 1] are the sample and frame offsets of the clips.
struct PackedWaveform {
  const float* floats = nullptr;         // [samples]; null if they are int16
  const std::int16_t* int16s = nullptr;  // [samples]; null if they are float32
  std::int64_t samples = 0;
  const std::int64_t* cu_seqlens = nullptr;
  const std::int64_t* cu_frames = nullptr;
  std::int64_t clips = 0;
  std::int64_t frames = 0;
};

// Patches [frames, mels]. Tokens are ordered by time, then by frequency (lowest first). Frames beyond the end of a clip
// hold `padding`, masked values hold `mask_value`.
struct PatchLayout {
  std::int64_t frames = 0, mels = 0;
  float padding = 0.0f, mask_value = 0.0f;
  const std::uint8_t* time_masked = nullptr;  // [total frames], nullable
  const std::uint8_t* mel_masked = nullptr;   // [clips, n_mels], nullable
};

// Immutable and thread-safe. A frame's bits depend on its samples only, a gradient's on its clip only. Offsets and
// sizes are validated before any array is accessed.
class LogMel {
 public:
  // Throws std::invalid_argument for inconsistent parameters or tables of the wrong size.
  explicit LogMel(LogMelSpec spec);

  // mels [frames, n_mels]
  void forward(const PackedWaveform& waveform, float* mels, int threads) const;

  // patches [tokens, layout.frames * layout.mels]; a clip has ceil(frames / layout.frames) * n_mels / layout.mels
  // tokens
  void patches(const PackedWaveform& waveform, const PatchLayout& layout, float* patches, std::int64_t tokens,
               int threads) const;

  // grad_mels [frames, n_mels], grad_waveform [samples]. The gradient is zero at mel values at or below log_floor.
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
