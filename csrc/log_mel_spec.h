// Log-mel parameters and tables of a slap_fast.ops.MelConfig, for the CPU and CUDA kernels.
#pragma once

#include <cstdint>
#include <vector>

namespace slap_fast {

enum class Padding { zeros, reflect, kaldi };

struct LogMelSpec {
  std::int64_t n_fft = 0;
  std::int64_t win_length = 0;
  std::int64_t hop_length = 0;
  std::int64_t n_mels = 0;
  std::int64_t first_sample = 0;     // start of frame 0 relative to the clip; negative: in the padding
  Padding padding = Padding::zeros;  // of a clip, on both sides
  float input_scale = 1.0f;          // factor of float samples; int16 samples are also divided by 32768
  bool remove_dc_offset = false;
  float preemphasis = 0.0f;
  bool preemphasis_over_clip = false;  // over the clip before padding; false: within each frame
  bool magnitude = false;              // filters apply to sqrt(power)
  float power_guard = 0.0f;
  float log_floor = 0.0f;
  float log_guard = 0.0f;
  // v = max(mel, log_floor) + log_guard; y = (logarithm ? log(v) : v) * log_scale + log_shift. Normalization by a
  // global mean and deviation is folded into scale and shift, unless the clip is normalized first.
  bool logarithm = true;
  float log_scale = 1.0f;
  float log_shift = 0.0f;
  std::vector<float> window;   // [win_length]
  std::vector<float> filters;  // [n_mels, n_fft / 2 + 1]
};

}  // namespace slap_fast
