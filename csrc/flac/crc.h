// Checksums of frames (9.1.8, 9.3): CRC-8 with polynomial 0x07, CRC-16 with polynomial 0x8005, both from zero.
#pragma once

#include "flac/build.h"

SLAP_FAST_FLAC_BEGIN

SLAP_FAST_FLAC_INLINE std::uint8_t crc8(const std::uint8_t* bytes, std::int64_t count) {
  std::uint32_t crc = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc << 1) ^ (crc & 0x80 ? 0x107 : 0);
  }
  return static_cast<std::uint8_t>(crc);
}

// The checksum of one more byte. The remainder of x * t^16 for a byte x is x * (t^2 + t), plus t^15 + t + 1 if x has an
// odd number of ones: no table, which a GPU would have to load.
SLAP_FAST_FLAC_INLINE std::uint32_t crc16_byte(std::uint32_t crc, std::uint32_t byte) {
  const std::uint32_t x = (crc >> 8) ^ byte;
  std::uint32_t odd = x ^ (x >> 4);
  odd = (0x6996u >> (odd & 15)) & 1;
  return ((crc << 8) & 0xFFFF) ^ (x << 1) ^ (x << 2) ^ (odd * 0x8003u);
}

SLAP_FAST_FLAC_INLINE std::uint32_t crc16(const std::uint8_t* bytes, std::int64_t count) {
  std::uint32_t crc = 0;
  for (std::int64_t i = 0; i < count; ++i) crc = crc16_byte(crc, bytes[i]);
  return crc;
}

SLAP_FAST_FLAC_END
