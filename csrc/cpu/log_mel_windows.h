// Contiguous float windows of padded clips.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "aligned_array.h"
#include "log_mel_kernel.h"
#include "log_mel_spec.h"

namespace slap_fast {

constexpr std::int64_t kMaxLanes = 16;

template <class Sample>
struct Clip {
  const Sample* samples;
  std::int64_t length;
};

// Index of the sample at a padded position; -1: zero.
inline std::int64_t source_of(std::int64_t position, std::int64_t length, Padding padding) {
  if (position >= 0 && position < length) return position;
  if (padding == Padding::zeros || length == 0) return -1;
  if (length == 1) return 0;
  const std::int64_t period = padding == Padding::reflect ? 2 * (length - 1) : 2 * length;
  const std::int64_t phase = (position % period + period) % period;
  if (phase < length) return phase;
  return padding == Padding::reflect ? period - phase : period - 1 - phase;
}

// Windows of one thread. A window that cannot be read in place (padding, int16 samples, input scale, preemphasis over
// the clip) is copied; at most `capacity` windows between calls of reset().
template <class Sample>
class Windows {
 public:
  Windows(const LogMelSpec& spec, const LogMelKernel& kernel, std::int64_t capacity)
      : spec_(spec),
        kernel_(kernel),
        scale_(std::is_same_v<Sample, float> ? spec.input_scale : spec.input_scale / 32768.0f),
        in_place_(std::is_same_v<Sample, float> && spec.input_scale == 1.0f && !spec.preemphasis_over_clip),
        copies_(capacity * spec.win_length),
        unemphasized_(spec.preemphasis_over_clip ? capacity * spec.win_length + 1 : 0) {}

  void reset() { used_ = 0; }

  // Calls visit(i, window) for frames [first, first + count) of the clip, in order.
  template <class Visit>
  void visit(const Clip<Sample>& clip, std::int64_t first, std::int64_t count, Visit visit) {
    const std::int64_t hop = spec_.hop_length, win = spec_.win_length;
    for (std::int64_t i = 0; i < count;) {
      const std::int64_t begin = spec_.first_sample + (first + i) * hop;
      if constexpr (std::is_same_v<Sample, float>) {
        if (in_place_ && begin >= 0 && begin + win <= clip.length) {
          visit(first + i++, clip.samples + begin);
          continue;
        }
      }
      // Overlapping windows share one copy, except at the edges of clips read in place.
      const std::int64_t shared_windows = in_place_ || hop > win ? 1 : count - i;
      float* copy = copies_.get() + used_;
      const std::int64_t samples = (shared_windows - 1) * hop + win;
      copy_samples(clip, begin, samples, copy);
      used_ += samples;
      for (std::int64_t j = 0; j < shared_windows; ++j) visit(first + i++, copy + j * hop);
    }
  }

 private:
  void copy_samples(const Clip<Sample>& clip, std::int64_t begin, std::int64_t count, float* out) {
    const std::int64_t low = std::clamp<std::int64_t>(0, begin, begin + count);
    const std::int64_t high = std::clamp<std::int64_t>(clip.length, low, begin + count);
    for (std::int64_t i = begin; i < low; ++i) out[i - begin] = padded(clip, i);
    if (high > low) copy_inside(clip, low, high - low, out + (low - begin));
    for (std::int64_t i = high; i < begin + count; ++i) out[i - begin] = padded(clip, i);
  }

  void copy_inside(const Clip<Sample>& clip, std::int64_t begin, std::int64_t count, float* out) {
    if (!spec_.preemphasis_over_clip) return scale(clip.samples + begin, count, out);
    float* raw = unemphasized_.get();
    const std::int64_t before = begin > 0;
    scale(clip.samples + begin - before, count + before, raw);
    if (!before) out[0] = raw[0];
    kernel_.emphasize(raw + 1, count - 1 + before, spec_.preemphasis, out + 1 - before);
  }

  float padded(const Clip<Sample>& clip, std::int64_t position) {
    const std::int64_t source = source_of(position, clip.length, spec_.padding);
    if (source < 0) return 0.0f;
    float sample;
    copy_inside(clip, source, 1, &sample);
    return sample;
  }

  void scale(const float* in, std::int64_t count, float* out) const { kernel_.scale_float(in, count, scale_, out); }
  void scale(const std::int16_t* in, std::int64_t count, float* out) const {
    kernel_.scale_int16(in, count, scale_, out);
  }

  const LogMelSpec& spec_;
  const LogMelKernel& kernel_;
  float scale_;
  bool in_place_;
  AlignedArray<float> copies_, unemphasized_;
  std::int64_t used_ = 0;
};

}  // namespace slap_fast
