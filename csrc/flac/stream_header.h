// Stream header: marker, STREAMINFO, SEEKTABLE; other metadata blocks and a leading ID3v2 tag are skipped (8).
#pragma once

#include "flac/build.h"
#include "flac/types.h"

SLAP_FAST_FLAC_BEGIN

SLAP_FAST_FLAC_INLINE std::uint64_t big_endian(const std::uint8_t* bytes, int count) {
  std::uint64_t value = 0;
  for (int i = 0; i < count; ++i) value = value << 8 | bytes[i];
  return value;
}

constexpr std::int64_t kPointBytes = 18;

// Point `index` of the stream's table, which may say anything.
SLAP_FAST_FLAC_INLINE Point seek_point(const std::uint8_t* file, const Stream& stream, std::int64_t index) {
  const std::uint8_t* bytes = file + stream.seek_table + index * kPointBytes;
  constexpr std::uint64_t kMost = std::uint64_t{1} << 62;
  const std::uint64_t sample = big_endian(bytes, 8), offset = big_endian(bytes + 8, 8);
  // Beyond any file: cannot overflow later.
  return {static_cast<std::int64_t>(sample < kMost ? sample : kMost),
          stream.first_frame + static_cast<std::int64_t>(offset < kMost ? offset : kMost),
          static_cast<std::int64_t>(big_endian(bytes + 16, 2))};
}

SLAP_FAST_FLAC_INLINE Error read_stream_header(const std::uint8_t* file, std::int64_t size, Stream& stream) {
  stream = Stream{};
  std::int64_t at = 0;
  if (size >= 10 && file[0] == 'I' && file[1] == 'D' && file[2] == '3') {
    std::int64_t length = 0;  // four bytes of seven bits
    for (int i = 6; i < 10; ++i) length = length << 7 | (file[i] & 0x7F);
    at = 10 + length + (file[5] & 0x10 ? 10 : 0);  // with its footer
  }
  if (size - at < 4) return at == 0 && size > 0 && file[0] == 'f' ? Error::truncated : Error::not_flac;
  if (big_endian(file + at, 4) != 0x664C6143) return Error::not_flac;  // fLaC
  at += 4;
  bool last = false, first = true;
  while (!last) {
    if (size - at < 4) return Error::truncated;
    last = file[at] & 0x80;
    const int type = file[at] & 0x7F;
    const auto length = static_cast<std::int64_t>(big_endian(file + at + 1, 3));
    at += 4;
    if (first && type != 0) return Error::not_flac;
    if (type == 127) return Error::bad_header;
    if (size - at < length) return Error::truncated;
    if (first) {
      if (length < 34) return Error::bad_header;
      const std::uint8_t* info = file + at;
      stream.min_block = static_cast<std::int32_t>(big_endian(info, 2));
      stream.max_block = static_cast<std::int32_t>(big_endian(info + 2, 2));
      const std::uint64_t packed = big_endian(info + 10, 8);
      stream.sample_rate = static_cast<std::int32_t>(packed >> 44);
      stream.channels = static_cast<std::int32_t>(packed >> 41 & 7) + 1;
      stream.bits = static_cast<std::int32_t>(packed >> 36 & 31) + 1;
      stream.samples = static_cast<std::int64_t>(packed & 0xFFFFFFFFF);
      for (int i = 0; i < 16; ++i) stream.md5[i] = info[18 + i];
    } else if (type == 0) {
      return Error::bad_header;
    } else if (type == 3 && stream.seek_table == 0) {
      stream.seek_table = at;
      stream.points = length / kPointBytes;
    }
    first = false;
    at += length;
  }
  stream.first_frame = at;
  // Placeholders come last.
  while (stream.points > 0 &&
         big_endian(file + stream.seek_table + (stream.points - 1) * kPointBytes, 8) == ~std::uint64_t{0})
    --stream.points;
  if (stream.max_block < 1 || stream.min_block > stream.max_block || stream.bits < 4) return Error::bad_header;
  return stream.bits > kMaxBits ? Error::unsupported : Error::ok;
}

// Whether `size` bytes can hold samples [start, start + count), whatever they are. Neither number is negative.
SLAP_FAST_FLAC_INLINE bool can_hold(const Stream& stream, std::int64_t size, std::int64_t start, std::int64_t count) {
  const std::int64_t most = (size - stream.first_frame) / kMinFrameBytes * stream.max_block;
  return start <= most && count <= most - start;
}

SLAP_FAST_FLAC_END
