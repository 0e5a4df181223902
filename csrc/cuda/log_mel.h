// Packed waveforms to log-mel frames on an NVIDIA GPU, and the gradient back to the waveform.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "log_mel_spec.h"

namespace slap_fast::cuda {

// Why no GPU can be used here; empty if one can.
std::string unavailable();

// One convention on one GPU: tables in its memory. Immutable once made, and so shared by any number of threads and
// streams; those streams must have finished with it when it goes.
//
// Addresses are device addresses on that GPU, sizes as in LogMelInput. Calls only launch: they wait for nothing and
// allocate nothing, so that a CUDA graph can capture them. The bits of a frame depend on its samples alone, those of a
// gradient on its clip alone. Offsets are not checked, but nothing is touched outside the arrays whatever they say.
// Throws std::invalid_argument for what cannot be served, std::runtime_error with CUDA's words for what fails.
class LogMel {
 public:
  LogMel(const LogMelSpec& spec, int device);
  ~LogMel();

  struct Waveform {
    const void* samples = nullptr;  // [count] float, or 16-bit integers
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
