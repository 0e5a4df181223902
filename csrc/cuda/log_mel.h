// CUDA log-mel frames of packed waveforms, and the gradient of the waveform.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "log_mel_spec.h"

namespace slap_fast::cuda {

// Reason why no GPU can be used, or empty.
std::string unavailable();

// Device tables of one LogMelSpec on one GPU. Immutable and thread-safe; must outlive the work queued on any stream.
//
// Pointers are device pointers. Calls neither synchronize nor allocate, so a CUDA graph can capture them. A frame's
// bits depend on its samples only, a gradient's on its clip only. Offsets are not validated, but clamped: invalid ones
// give undefined results without out-of-bounds access. Throws std::invalid_argument for unsupported parameters,
// std::runtime_error for CUDA errors.
class LogMel {
 public:
  LogMel(const LogMelSpec& spec, int device);
  ~LogMel();

  struct Waveform {
    const void* samples = nullptr;  // [count] float32 or int16
    bool int16 = false;
    std::int64_t count = 0;
    const std::int64_t* cu_seqlens = nullptr;  // [clips + 1]
    const std::int64_t* cu_frames = nullptr;   // [clips + 1]
    std::int64_t clips = 0;
    std::int64_t frames = 0;
  };

  // mels [frames, n_mels]
  void forward(const Waveform& waveform, float* mels, void* stream) const;

  // grad_mels [frames, n_mels], grad_waveform [count]
  void backward(const Waveform& waveform, const float* grad_mels, float* grad_waveform, void* stream) const;

 private:
  struct Pass;
  static void prepare(Pass& pass, const LogMelSpec& spec, bool backward, int device);

  std::unique_ptr<Pass> forward_, backward_;
};

}  // namespace slap_fast::cuda
