// What a log-mel kernel must know of a convention: slap_fast.ops.MelConfig as plain numbers and tables.
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
  std::int64_t first_sample = 0;     // where the window of a clip's frame 0 starts; negative in the padding
  Padding padding = Padding::zeros;  // what stands before and after a clip
  float input_scale = 1.0f;          // of float samples; 16-bit ones are divided by 32768 as well
  bool remove_dc_offset = false;
  float preemphasis = 0.0f;
  bool preemphasis_over_clip = false;  // before padding; otherwise within each frame
  bool magnitude = false;              // the root of the power spectrum
  float power_guard = 0.0f;
  float log_floor = 0.0f;
  float log_guard = 0.0f;
  // y = log(v) * log_scale + log_shift, or v * log_scale + log_shift without a logarithm. Normalisation by mean and
  // deviation is folded in, unless the clip as a whole is normalised first.
  bool logarithm = true;
  float log_scale = 1.0f;
  float log_shift = 0.0f;
  std::vector<float> window;   // [win_length]
  std::vector<float> filters;  // [n_mels, n_fft / 2 + 1]
};

}  // namespace slap_fast
