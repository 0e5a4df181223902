// MD5 (RFC 1321) of samples as FLAC encoders compute it: little-endian integers of whole bytes, channels interleaved.
#pragma once

#include "flac/build.h"

SLAP_FAST_FLAC_BEGIN

class Md5 {
 public:
  SLAP_FAST_FLAC_INLINE void add(std::uint32_t byte) {
    words_[length_ / 4 % 16] |= byte << (length_ % 4 * 8);
    if (++length_ % 64 == 0) mix();
  }

  // Whether the sum of all bytes so far is `expected`. The last call.
  SLAP_FAST_FLAC_INLINE bool is(const std::uint8_t* expected) {
    const std::uint64_t bits = length_ * 8;
    add(0x80);
    while (length_ % 64 != 56) add(0);
    for (int i = 0; i < 8; ++i) add(static_cast<std::uint32_t>(bits >> (8 * i) & 255));
    bool same = true;
    for (int i = 0; i < 16; ++i) same &= (state_[i / 4] >> (i % 4 * 8) & 255) == expected[i];
    return same;
  }

 private:
  SLAP_FAST_FLAC_INLINE void mix() {
    constexpr std::uint32_t kSines[64] = {
        0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
        0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
        0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
        0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
        0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
        0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
        0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
        0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};
    constexpr std::uint8_t kTurns[16] = {7, 12, 17, 22, 5, 9, 14, 20, 4, 11, 16, 23, 6, 10, 15, 21};
    std::uint32_t a = state_[0], b = state_[1], c = state_[2], d = state_[3];
    for (int i = 0; i < 64; ++i) {
      const int round = i / 16;
      std::uint32_t f = round == 0   ? (b & c) | (~b & d)
                        : round == 1 ? (b & d) | (c & ~d)
                        : round == 2 ? b ^ c ^ d
                                     : c ^ (b | ~d);
      const int word = round == 0 ? i : round == 1 ? (5 * i + 1) % 16 : round == 2 ? (3 * i + 5) % 16 : 7 * i % 16;
      f += a + kSines[i] + words_[word];
      a = d;
      d = c;
      c = b;
      const int turn = kTurns[round * 4 + i % 4];
      b += f << turn | f >> (32 - turn);
    }
    state_[0] += a;
    state_[1] += b;
    state_[2] += c;
    state_[3] += d;
    for (int i = 0; i < 16; ++i) words_[i] = 0;
  }

  std::uint32_t state_[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
  std::uint32_t words_[16] = {};
  std::uint64_t length_ = 0;
};

SLAP_FAST_FLAC_INLINE bool has_md5(const std::uint8_t* md5) {
  std::uint32_t any = 0;
  for (int i = 0; i < 16; ++i) any |= md5[i];
  return any != 0;
}

// Whether decoded samples, floats or left-aligned integers, are those of which the encoder took the sum.
template <class Sample>
SLAP_FAST_FLAC_NOINLINE bool md5_matches(const Sample* samples, std::int64_t count, std::int32_t bits,
                                         const std::uint8_t* md5) {
  Md5 sum;
  const int bytes = (bits + 7) / 8;
  const float scale = static_cast<float>(std::int32_t{1} << (bits - 1));
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = sizeof(Sample) == 4 && Sample(0.5f) != Sample(0)
                           ? static_cast<std::int32_t>(static_cast<float>(samples[i]) * scale)
                           : static_cast<std::int32_t>(samples[i]) >> (32 - bits);
    for (int byte = 0; byte < bytes; ++byte) sum.add(static_cast<std::uint32_t>(value) >> (8 * byte) & 255);
  }
  return sum.is(md5);
}

SLAP_FAST_FLAC_END
