// One frame in plain code: what a GPU thread runs, and the definition that the SIMD code is tested against.
#pragma once

#include "flac/bit_reader.h"
#include "flac/build.h"
#include "flac/crc.h"
#include "flac/frame_header.h"
#include "flac/subframe.h"
#include "flac/types.h"

SLAP_FAST_FLAC_BEGIN

// Bits of the samples of a channel: a difference of two channels has one more.
SLAP_FAST_FLAC_INLINE std::int32_t channel_bits(const FrameHeader& header, std::int32_t channel) {
  const bool side = (header.stereo == 8 && channel == 1) || (header.stereo == 9 && channel == 0) ||
                    (header.stereo == 10 && channel == 1);
  return header.bits + side;
}

struct Pair {
  std::int64_t left, right;
};

// Left and right of two decoded channels (4.2).
SLAP_FAST_FLAC_INLINE Pair left_and_right(std::int32_t stereo, std::int64_t first, std::int64_t second) {
  if (stereo == 8) return {first, first - second};
  if (stereo == 9) return {first + second, second};
  const std::int64_t middle = 2 * first + (second & 1);  // its lowest bit is that of the difference
  return {(middle + second) >> 1, (middle - second) >> 1};
}

// Decodes the subframes behind a frame header to `out` [block, channels]. `reader` starts behind the header and ends
// behind the checksum, which is compared if `frame`, the first byte of the frame, is given.
SLAP_FAST_FLAC_INLINE Error read_frame(BitReader& reader, const FrameHeader& header, const std::uint8_t* frame,
                                       std::int32_t* out) {
  const std::int32_t channels = header.channels;
  // Reported only if the bits are as they were written: damage is the better reason.
  bool in_range = true;
  for (std::int32_t channel = 0; channel < channels; ++channel) {
    Predictor predictor;
    std::int32_t* samples = out + channel;
    Error error =
        read_subframe(reader, header.block, channel_bits(header, channel), samples, channels, predictor, PlainRice());
    if (error == Error::ok) error = predict(predictor, header.block, samples, channels);
    if (error != Error::ok) return error;
    for (std::int32_t i = 0; i < header.block && predictor.wasted; ++i) {
      std::int32_t& sample = samples[static_cast<std::int64_t>(i) * channels];
      sample = static_cast<std::int32_t>(static_cast<std::uint32_t>(sample) << predictor.wasted);
    }
  }
  if (header.stereo) {
    const std::int64_t limit = std::int64_t{1} << (header.bits - 1);
    for (std::int32_t i = 0; i < header.block; ++i) {
      std::int32_t* both = out + 2 * static_cast<std::int64_t>(i);
      const Pair pair = left_and_right(header.stereo, both[0], both[1]);
      in_range &= pair.left >= -limit && pair.left < limit && pair.right >= -limit && pair.right < limit;
      both[0] = static_cast<std::int32_t>(pair.left);
      both[1] = static_cast<std::int32_t>(pair.right);
    }
  }
  reader.align_to_byte();
  const std::int64_t end = reader.byte_position();
  const std::uint32_t stored = reader.read(16);
  if (reader.overrun) return Error::truncated;
  if (frame && crc16(frame, reader.data + end - frame) != stored) return Error::bad_crc;
  return in_range ? Error::ok : Error::bad_subframe;
}

// Integers of `bits` bits to the samples that libsndfile gives.
SLAP_FAST_FLAC_INLINE float float_scale(std::int32_t bits) {
  return 1.0f / static_cast<float>(std::int32_t{1} << (bits - 1));
}
SLAP_FAST_FLAC_INLINE std::int32_t to_int32(std::int32_t sample, std::int32_t bits) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(sample) << (32 - bits));
}
SLAP_FAST_FLAC_INLINE std::int16_t to_int16(std::int32_t sample, std::int32_t bits) {
  return static_cast<std::int16_t>(to_int32(sample, bits) >> 16);
}

SLAP_FAST_FLAC_END
