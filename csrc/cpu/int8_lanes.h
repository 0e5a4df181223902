// Sums of products of small integers, in the vectors that this translation unit is compiled for.
//
// With VNNI, an instruction multiplies 4 unsigned bytes with 4 signed ones and adds the products to 32 bits, without
// saturation. Without, bytes are widened to 16 bits and multiplied in pairs: `vpmaddubsw`, which multiplies bytes,
// would saturate the sum of two products at 16 bits, and give wrong results for large values.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace slap_fast::SLAP_FAST_ISA {

#if defined(__AVX512F__)

struct DotLanes {
  static constexpr int count = 16;
  using Vector = __m512i;
  static SLAP_FAST_INLINE Vector load(const std::int32_t* in) { return _mm512_loadu_si512(in); }
  static SLAP_FAST_INLINE Vector broadcast(const void* group) {
    std::int32_t bits;
    __builtin_memcpy(&bits, group, sizeof bits);
    return _mm512_set1_epi32(bits);
  }
  static SLAP_FAST_INLINE void store(std::int32_t* out, Vector x) { _mm512_storeu_si512(out, x); }
};

#elif defined(__AVX2__)

struct DotLanes {
  static constexpr int count = 8;
  using Vector = __m256i;
  static SLAP_FAST_INLINE Vector load(const std::int32_t* in) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  }
  static SLAP_FAST_INLINE Vector broadcast(const void* group) {
    std::int32_t bits;
    __builtin_memcpy(&bits, group, sizeof bits);
    return _mm256_set1_epi32(bits);
  }
  static SLAP_FAST_INLINE void store(std::int32_t* out, Vector x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), x);
  }
};

#else

struct DotLanes {
  static constexpr int count = 4;
  struct Vector {
    std::int32_t v[count];
  };
  static SLAP_FAST_INLINE Vector load(const std::int32_t* in) { return {{in[0], in[1], in[2], in[3]}}; }
  static SLAP_FAST_INLINE Vector broadcast(const void* group) {
    std::int32_t bits;
    __builtin_memcpy(&bits, group, sizeof bits);
    return {{bits, bits, bits, bits}};
  }
  static SLAP_FAST_INLINE void store(std::int32_t* out, Vector x) { __builtin_memcpy(out, x.v, sizeof x.v); }
};

#endif

// 16-bit values of x, in pairs.
struct PairDot {
  using Value = std::int16_t;
  static constexpr int group = 2;
  static constexpr int offset = 0;

#if defined(__AVX512F__)
  static SLAP_FAST_INLINE __m512i weights(const std::int8_t* in) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
  }
  static SLAP_FAST_INLINE __m512i add(__m512i sum, __m512i x, __m512i w) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w));
  }
#elif defined(__AVX2__)
  static SLAP_FAST_INLINE __m256i weights(const std::int8_t* in) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
  }
  static SLAP_FAST_INLINE __m256i add(__m256i sum, __m256i x, __m256i w) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
  }
#else
  struct Weights {
    const std::int8_t* in;
  };
  static SLAP_FAST_INLINE Weights weights(const std::int8_t* in) { return {in}; }
  static SLAP_FAST_INLINE DotLanes::Vector add(DotLanes::Vector sum, DotLanes::Vector x, Weights w) {
    std::int16_t pair[2];
    __builtin_memcpy(pair, &x.v[0], sizeof pair);
    for (int i = 0; i < DotLanes::count; ++i) sum.v[i] += pair[0] * w.in[2 * i] + pair[1] * w.in[2 * i + 1];
    return sum;
  }
#endif
};

// Unsigned bytes of x, in fours: 128 is added to each value, and taken back by the start of a sum.
struct ByteDot {
  using Value = std::uint8_t;
  static constexpr int group = 4;
  static constexpr int offset = 128;

#if defined(__AVX512VNNI__)
  static SLAP_FAST_INLINE __m512i weights(const std::int8_t* in) { return _mm512_loadu_si512(in); }
  static SLAP_FAST_INLINE __m512i add(__m512i sum, __m512i x, __m512i w) { return _mm512_dpbusd_epi32(sum, x, w); }
#elif defined(__AVXVNNI__)
  static SLAP_FAST_INLINE __m256i weights(const std::int8_t* in) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  }
  static SLAP_FAST_INLINE __m256i add(__m256i sum, __m256i x, __m256i w) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
#elif !defined(__AVX2__)
  // What VNNI computes, for tests on machines without it.
  struct Weights {
    const std::int8_t* in;
  };
  static SLAP_FAST_INLINE Weights weights(const std::int8_t* in) { return {in}; }
  static SLAP_FAST_INLINE DotLanes::Vector add(DotLanes::Vector sum, DotLanes::Vector x, Weights w) {
    std::uint8_t four[4];
    __builtin_memcpy(four, &x.v[0], sizeof four);
    for (int i = 0; i < DotLanes::count; ++i)
      for (int j = 0; j < 4; ++j) sum.v[i] += four[j] * w.in[4 * i + j];
    return sum;
  }
#endif
};

}  // namespace slap_fast::SLAP_FAST_ISA
