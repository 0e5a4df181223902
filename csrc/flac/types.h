// Data types of the FLAC decoder. Numbers of sections are those of RFC 9639.
#pragma once

#include <cstdint>

namespace slap_fast::flac {

// Why a file has no samples. The values are public: slap_fast/ops/decode_flac/errors.py has the same.
enum class Error : std::int32_t {
  ok = 0,
  not_flac = 1,        // no fLaC marker, or no STREAMINFO block after it
  truncated = 2,       // the bytes end inside a header or a frame, or before the last sample
  bad_header = 3,      // a stream or frame header is malformed or contradicts the stream
  unsupported = 4,     // more than 24 bits a sample
  bad_crc = 5,         // checksum of a frame or of its header
  bad_subframe = 6,    // a reserved value, or a sample outside the range of its bits
  wrong_length = 7,    // not the number of samples that is expected, or more than the bytes can hold
  wrong_channels = 8,  // not the number of channels that is expected
  bad_md5 = 9,         // the samples are not those that were encoded
  unknown_length = 10  // the header does not say the number of samples, and the caller does not either
};

constexpr int kMaxChannels = 8;
constexpr int kMaxOrder = 32;
constexpr int kMaxBits = 24;
constexpr std::int64_t kMaxBlock = 65535;
// Header of 6 bytes (with CRC-8), one constant subframe of 1 + 1 bytes, CRC-16.
constexpr std::int64_t kMinFrameBytes = 10;

enum class SampleType : std::int32_t { float32, int32, int16 };

enum class Verify : std::int32_t {
  none,  // headers only
  crc,   // the CRC-16 of each frame
  md5    // in addition, the MD5 of all samples if the file has one
};

// STREAMINFO (8.2), and where the rest is.
struct Stream {
  std::int64_t samples;  // of each channel; 0: unknown
  std::int32_t sample_rate;
  std::int32_t channels;
  std::int32_t bits;
  std::int32_t min_block;
  std::int32_t max_block;
  std::int64_t first_frame;  // byte offset in the file
  std::int64_t seek_table;   // byte offset of the first seek point
  std::int64_t points;       // seek points, without placeholders
  std::uint8_t md5[16];      // zeros: unknown
};

// A seek point (8.5).
struct Point {
  std::int64_t sample;   // first sample of the frame
  std::int64_t byte;     // offset of the frame in the file
  std::int64_t samples;  // in the frame
};

// Frame header (9.1).
struct FrameHeader {
  std::int64_t number;  // of the frame, or of its first sample if `variable`
  bool variable;
  std::int32_t block;     // samples of each channel
  std::int32_t channels;  // 1 to 8
  std::int32_t stereo;    // 0: independent, 8: left and side, 9: side and right, 10: mid and side
  std::int32_t bits;
};

// Prediction of a subframe (9.2): sample[i] = residual[i] + (sum_j coefficients[j] * sample[i - 1 - j] >> shift).
// A fixed predictor is one with binomial coefficients, a verbatim subframe one of order 0.
struct Predictor {
  std::int32_t order;
  std::int32_t shift;
  std::int32_t wasted;  // bits to shift all samples left by
  std::int32_t bits;    // of a sample before that shift
  std::uint32_t peak;   // every |residual| is at most this
  std::int32_t coefficients[kMaxOrder];
};

}  // namespace slap_fast::flac
