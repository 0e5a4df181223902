// A file of a batch: its bytes, and the shape of its waveform by its header.
#pragma once

#include <cstdint>

#include "cpu/flac_decode.h"

namespace slap_fast::dali_plugin {

struct Clip {
  const std::uint8_t* bytes;
  std::int64_t size;
  flac::Error error = flac::Error::ok;  // of the header
  std::int64_t samples = 0;             // of each channel; 0 with an error
  int channels = 1;
  int sample_rate = 0;
};

struct ClipLimits {
  bool mono = false;
  std::int64_t max_samples = 0;  // 0: none
  flac::SampleType dtype = flac::SampleType::float32;
  flac::Verify verify = flac::Verify::crc;
};

inline Clip read_clip(const std::uint8_t* bytes, std::int64_t size, const ClipLimits& limits) {
  Clip clip{bytes, size};
  flac::Stream stream{};
  clip.error = flac_info(bytes, size, stream);
  clip.sample_rate = stream.sample_rate;
  if (clip.error != flac::Error::ok) return clip;
  if (limits.mono && stream.channels != 1) {
    clip.error = flac::Error::wrong_channels;
  } else if (limits.max_samples > 0 && stream.samples > limits.max_samples) {
    clip.error = flac::Error::wrong_length;
  } else if (limits.verify == flac::Verify::md5 && limits.dtype == flac::SampleType::int16 && stream.bits > 16) {
    clip.error = flac::Error::unsupported;  // the MD5 covers bits that the output does not have
  } else {
    clip.samples = stream.samples;
    clip.channels = stream.channels;
  }
  return clip;
}

}  // namespace slap_fast::dali_plugin
