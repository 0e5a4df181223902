// One frame in plain code, sample by sample: what a GPU thread runs, and what the SIMD code is tested against.
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

// Reads the samples of a subframe whose header is read, one after another: sink(i, sample). Nothing is stored but the
// `kOrder` last samples, in registers. A sample that is out of range counts as 0, and `in_range` becomes false.
template <int kOrder, class Sum, class Sink>
SLAP_FAST_FLAC_INLINE Error stream_residual(BitReader& reader, std::int32_t block, const Predictor& predictor,
                                            const std::int32_t* first, bool& in_range, const Sink& sink) {
  const std::int32_t order = predictor.order;
  const std::int64_t limit = std::int64_t{1} << (predictor.bits - 1);
  std::int32_t history[kOrder], coefficients[kOrder];
  SLAP_FAST_FLAC_UNROLL
  for (int j = 0; j < kOrder; ++j) {
    history[j] = j < order ? first[order - 1 - j] : 0;
    coefficients[j] = j < order ? predictor.coefficients[j] : 0;
  }
  Partitions partitions;
  Error error = read_partitions(reader, block, order, partitions);
  if (error != Error::ok) return error;
  std::int32_t done = order;
  for (std::int32_t end = partitions.size; end <= block; end += partitions.size) {
    const int parameter = static_cast<int>(reader.read(partitions.parameter_bits));
    const bool raw = parameter == partitions.escape;
    const int bits = raw ? static_cast<int>(reader.read(5)) : parameter;
    const std::uint32_t most = 0xFFFFFFFFu >> (raw ? 0 : parameter);
    for (; done < end; ++done) {
      std::int32_t residual;
      if (raw) {
        residual = reader.read_signed(bits);
      } else {
        const std::uint32_t quotient = reader.read_unary(most);
        if (quotient > most) return Error::bad_subframe;
        const std::uint32_t folded = (quotient << parameter) | reader.read(parameter);
        residual = static_cast<std::int32_t>(folded >> 1) ^ -static_cast<std::int32_t>(folded & 1);
      }
      if (reader.overrun) return Error::truncated;
      Sum sum = 0;
      SLAP_FAST_FLAC_UNROLL
      for (int j = kOrder - 1; j >= 0; --j) sum += static_cast<Sum>(coefficients[j]) * history[j];
      std::int64_t sample = residual + static_cast<std::int64_t>(sum >> predictor.shift);
      if (sample < -limit || sample >= limit) {
        in_range = false;
        sample = 0;
      }
      SLAP_FAST_FLAC_UNROLL
      for (int j = kOrder - 1; j > 0; --j) history[j] = history[j - 1];
      history[0] = static_cast<std::int32_t>(sample);
      sink(done, history[0]);
    }
  }
  return reader.overrun ? Error::truncated : Error::ok;
}

// Whether predictions from samples in range fit 32 bits.
SLAP_FAST_FLAC_INLINE bool predictions_fit_32_bits(const Predictor& predictor) {
  return largest_prediction(predictor) <= 0x7FFFFFFF;
}

template <class Sink>
SLAP_FAST_FLAC_INLINE Error stream_subframe(BitReader& reader, std::int32_t block, std::int32_t bits, bool& in_range,
                                            const Sink& sink) {
  Predictor predictor;
  Kind kind = Kind::constant;
  std::int32_t first[kMaxOrder];
  Error error = read_subframe_header(reader, block, bits, first, 1, predictor, kind);
  if (error != Error::ok) return error;
  const auto wide = [&](std::int32_t i, std::int32_t sample) {
    sink(i, static_cast<std::int32_t>(static_cast<std::uint32_t>(sample) << predictor.wasted));
  };
  if (kind != Kind::predicted) {
    const std::int32_t constant = kind == Kind::constant ? reader.read_signed(predictor.bits) : 0;
    for (std::int32_t i = 0; i < block && !reader.overrun; ++i)
      wide(i, kind == Kind::constant ? constant : reader.read_signed(predictor.bits));
    return reader.overrun ? Error::truncated : Error::ok;
  }
  for (std::int32_t i = 0; i < predictor.order; ++i) wide(i, first[i]);
  const bool narrow = predictions_fit_32_bits(predictor);
  if (predictor.order <= 8)
    return narrow ? stream_residual<8, std::int32_t>(reader, block, predictor, first, in_range, wide)
                  : stream_residual<8, std::int64_t>(reader, block, predictor, first, in_range, wide);
  if (predictor.order <= 16 && narrow)
    return stream_residual<16, std::int32_t>(reader, block, predictor, first, in_range, wide);
  return stream_residual<32, std::int64_t>(reader, block, predictor, first, in_range, wide);
}

// Reads the subframes behind a frame header: sink(channel, i, sample). With stereo decorrelation the samples are those
// of the two coded channels. `reader` starts behind the header and ends behind the checksum, which is compared if
// `frame`, the first byte of the frame, is given. Damage is reported before samples out of range.
template <class Sink>
SLAP_FAST_FLAC_INLINE Error stream_frame(BitReader& reader, const FrameHeader& header, const std::uint8_t* frame,
                                         const Sink& sink) {
  bool in_range = true;
  for (std::int32_t channel = 0; channel < header.channels; ++channel) {
    const auto of_channel = [&](std::int32_t i, std::int32_t sample) { in_range &= sink(channel, i, sample); };
    const Error error = stream_subframe(reader, header.block, channel_bits(header, channel), in_range, of_channel);
    if (error != Error::ok) return error;
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
