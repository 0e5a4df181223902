// Reader of big-endian bits that never leaves its bytes.
#pragma once

#include "flac/build.h"

#if !defined(__CUDA_ARCH__)
#include <cstring>
#endif

SLAP_FAST_FLAC_BEGIN

SLAP_FAST_FLAC_INLINE int leading_zeros(std::uint64_t x) {  // x != 0
#if defined(__CUDA_ARCH__)
  return __clzll(static_cast<long long>(x));
#else
  return __builtin_clzll(x);
#endif
}

struct BitReader {
  const std::uint8_t* data;
  std::int64_t size;         // bytes
  std::int64_t next = 0;     // first byte that is not in `buffer`
  std::uint64_t buffer = 0;  // unread bits, left-aligned; zeros follow
  std::int32_t count = 0;    // of unread bits in `buffer`
  bool overrun = false;      // bits were read beyond the end; they are zeros

  SLAP_FAST_FLAC_INLINE BitReader(const std::uint8_t* bytes, std::int64_t length) : data(bytes), size(length) {}

  // At least 33 bits in the buffer, or all that are left.
  SLAP_FAST_FLAC_INLINE void refill() {
    while (count <= 32) {
      if (word_is_readable()) {
        buffer |= static_cast<std::uint64_t>(word()) << (32 - count);
        count += 32;
        next += 4;
      } else if (next < size) {
        buffer |= static_cast<std::uint64_t>(data[next++]) << (56 - count);
        count += 8;
      } else {
        return;
      }
    }
  }

  // Drops `bits` bits, at most 64.
  SLAP_FAST_FLAC_INLINE void skip(int bits) {
    buffer = bits < 64 ? buffer << bits : 0;
    count -= bits;
    if (count < 0) {
      overrun = true;
      buffer = 0;
      count = 0;
    }
  }

  // `bits` bits, 0 to 32.
  SLAP_FAST_FLAC_INLINE std::uint32_t read(int bits) {
    if (bits == 0) return 0;
    refill();
    const auto value = static_cast<std::uint32_t>(buffer >> (64 - bits));
    skip(bits);
    return value;
  }

  // Two's complement of `bits` bits, 0 to 32.
  SLAP_FAST_FLAC_INLINE std::int32_t read_signed(int bits) {
    if (bits == 0) return 0;
    return static_cast<std::int32_t>(read(bits) << (32 - bits)) >> (32 - bits);
  }

  // Zeros before the next one, which is dropped too; more than `limit`: some number above it.
  SLAP_FAST_FLAC_INLINE std::uint32_t read_unary(std::uint32_t limit) {
    std::uint32_t zeros = 0;
    while (true) {
      refill();
      if (buffer != 0) {
        const int run = leading_zeros(buffer);
        skip(run + 1);
        return zeros + static_cast<std::uint32_t>(run);
      }
      if (count == 0) {
        overrun = true;
        return 0;
      }
      zeros += static_cast<std::uint32_t>(count);
      if (zeros > limit) return zeros;
      skip(count);
    }
  }

  SLAP_FAST_FLAC_INLINE void align_to_byte() { skip(count & 7); }

  // Byte offset of the next bit, which is the first of its byte.
  SLAP_FAST_FLAC_INLINE std::int64_t byte_position() const { return next - count / 8; }

 private:
  // Reads of four bytes must be aligned on a GPU.
  SLAP_FAST_FLAC_INLINE bool word_is_readable() const {
#if defined(__CUDA_ARCH__)
    return next + 4 <= size && (reinterpret_cast<std::uintptr_t>(data + next) & 3) == 0;
#else
    return next + 4 <= size;
#endif
  }

  SLAP_FAST_FLAC_INLINE std::uint32_t word() const {
#if defined(__CUDA_ARCH__)
    return __byte_perm(*reinterpret_cast<const std::uint32_t*>(data + next), 0, 0x0123);
#else
    std::uint32_t value;
    std::memcpy(&value, data + next, 4);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    value = __builtin_bswap32(value);
#endif
    return value;
#endif
  }
};

SLAP_FAST_FLAC_END
