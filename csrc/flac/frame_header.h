// Frame header (9.1), checked by its CRC-8 and against the stream.
#pragma once

#include "flac/build.h"
#include "flac/crc.h"
#include "flac/types.h"

SLAP_FAST_FLAC_BEGIN

// `length`: bytes of the header.
SLAP_FAST_FLAC_INLINE Error read_frame_header(const std::uint8_t* bytes, std::int64_t size, const Stream& stream,
                                              FrameHeader& header, std::int64_t& length) {
  if (size < 6) return Error::truncated;
  if (bytes[0] != 0xFF || (bytes[1] & 0xFE) != 0xF8) return Error::bad_header;
  header.variable = bytes[1] & 1;
  const int block_code = bytes[2] >> 4, rate_code = bytes[2] & 15;
  const int channel_code = bytes[3] >> 4, bits_code = bytes[3] >> 1 & 7;
  if (block_code == 0 || rate_code == 15 || channel_code > 10 || (bytes[3] & 1)) return Error::bad_header;

  // The coded number: one byte, or as many as the first has leading ones, each but the first with six bits.
  std::int64_t at = 4;
  int more = 0;
  std::uint32_t lead = bytes[at++];
  if (lead & 0x80) {
    while (lead & (0x80u >> more)) ++more;
    if (more == 1 || more > (header.variable ? 7 : 6)) return Error::bad_header;
    lead &= 0x7Fu >> more;
    --more;
  }
  const int block_bytes = block_code == 6 ? 1 : block_code == 7 ? 2 : 0;
  const int rate_bytes = rate_code == 12 ? 1 : rate_code > 12 ? 2 : 0;
  length = at + more + block_bytes + rate_bytes + 1;
  if (size < length) return Error::truncated;
  std::uint64_t number = lead;
  for (int i = 0; i < more; ++i) {
    if ((bytes[at] & 0xC0) != 0x80) return Error::bad_header;
    number = number << 6 | (bytes[at++] & 0x3F);
  }
  header.number = static_cast<std::int64_t>(number);

  std::int32_t trailing = 0;
  for (int i = 0; i < block_bytes; ++i) trailing = trailing << 8 | bytes[at++];
  header.block = block_bytes       ? trailing + 1
                 : block_code == 1 ? 192
                 : block_code < 6  ? 576 << (block_code - 2)
                                   : 256 << (block_code - 8);
  std::int32_t rate = 0;
  for (int i = 0; i < rate_bytes; ++i) rate = rate << 8 | bytes[at++];
  constexpr std::int32_t kRates[12] = {0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000};
  rate = rate_code < 12 ? kRates[rate_code] : rate_code == 12 ? rate * 1000 : rate_code == 14 ? rate * 10 : rate;
  if (crc8(bytes, length - 1) != bytes[length - 1]) return Error::bad_crc;

  constexpr std::int32_t kBits[8] = {0, 8, 12, -1, 16, 20, 24, 32};
  header.bits = bits_code ? kBits[bits_code] : stream.bits;
  header.channels = channel_code < 8 ? channel_code + 1 : 2;
  header.stereo = channel_code < 8 ? 0 : channel_code;
  const bool same = header.bits == stream.bits && header.channels == stream.channels &&
                    (rate_code == 0 || rate == stream.sample_rate) && header.block <= stream.max_block;
  return same ? Error::ok : Error::bad_header;
}

// Whether the frames of a file go on at `byte`. Something else may, such as a tag.
SLAP_FAST_FLAC_INLINE bool frame_follows(const std::uint8_t* file, std::int64_t size, const Stream& stream,
                                         std::int64_t byte) {
  FrameHeader header;
  std::int64_t length = 0;
  return read_frame_header(file + byte, size - byte, stream, header, length) == Error::ok;
}

SLAP_FAST_FLAC_END
