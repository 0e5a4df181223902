// Loads and stores of float32, bfloat16 and float16 memory as float32 lanes. Stores round to nearest even. See simd.h
// for the namespace.
#pragma once

#include "lanes.h"

namespace slap_fast::SLAP_FAST_ISA {

SLAP_FAST_INLINE WordLanes select(IntLanes mask, WordLanes x, WordLanes y) { return mask ? x : y; }

// kLanes 16-bit values to and from 32-bit words. The upper half of each word is zero, and must be for the store.
SLAP_FAST_INLINE WordLanes load_halves(const std::uint16_t* in) {
#if defined(__AVX512F__)
  return (WordLanes)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
#elif defined(__AVX2__)
  return (WordLanes)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
#else
  return WordLanes{in[0], in[1], in[2], in[3]};
#endif
}
SLAP_FAST_INLINE void store_halves(std::uint16_t* out, WordLanes x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16((__m512i)x));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)x, (__m256i)x);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x8)));
#else
  for (int i = 0; i < kLanes; ++i) out[i] = static_cast<std::uint16_t>(x[i]);
#endif
}

struct Float32 {
  using Stored = float;
  static SLAP_FAST_INLINE Lanes load(const float* in) { return load_unaligned(in); }
  static SLAP_FAST_INLINE void store(float* out, Lanes x) { store_unaligned(out, x); }
};

struct BFloat16 {
  using Stored = std::uint16_t;
  static SLAP_FAST_INLINE Lanes load(const std::uint16_t* in) { return floats(load_halves(in) << 16); }
  static SLAP_FAST_INLINE void store(std::uint16_t* out, Lanes x) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh(x));
#else
    const WordLanes bits = words(x);
    const WordLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const WordLanes quiet = (bits >> 16) | 0x40u;  // keeps a NaN from rounding to infinity
    store_halves(out, select(x == x, rounded, quiet));
#endif
  }
};

struct Float16 {
  using Stored = std::uint16_t;
#if defined(__AVX512F__)
  static SLAP_FAST_INLINE Lanes load(const std::uint16_t* in) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
  }
  static SLAP_FAST_INLINE void store(std::uint16_t* out, Lanes x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__AVX2__)
  static SLAP_FAST_INLINE Lanes load(const std::uint16_t* in) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
  }
  static SLAP_FAST_INLINE void store(std::uint16_t* out, Lanes x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static SLAP_FAST_INLINE Lanes load(const std::uint16_t* in) {
    const WordLanes bits = load_halves(in);
    const WordLanes magnitude = bits & 0x7fffu;
    // Exponent biases differ by 112. Subnormals are multiples of 2^-24; infinity and NaN keep their mantissa bits.
    const WordLanes normal = (magnitude << 13) + (112u << 23);
    const WordLanes subnormal = words(__builtin_convertvector(reinterpret_cast<IntLanes>(magnitude), Lanes) * 0x1p-24f);
    const WordLanes special = (magnitude << 13) | 0x7f800000u;
    WordLanes wide = select(magnitude < 0x400u, subnormal, normal);
    wide = select(magnitude >= 0x7c00u, special, wide);
    return floats(wide | ((bits & 0x8000u) << 16));
  }
  static SLAP_FAST_INLINE void store(std::uint16_t* out, Lanes x) {
    const WordLanes bits = words(x);
    const WordLanes magnitude = bits & 0x7fffffffu;
    const WordLanes normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // The ulp of 0.5f is 2^-24, the spacing of float16 subnormals: adding 0.5 rounds to them.
    const WordLanes subnormal = words(floats(magnitude) + 0.5f) - words(splat(0.5f));
    WordLanes half = select(magnitude < (113u << 23), subnormal, normal);
    half = select(magnitude >= 0x477ff000u, WordLanes{} + 0x7c00u, half);  // >= 65520 rounds to infinity
    half = select(magnitude > 0x7f800000u, ((magnitude >> 13) & 0x3ffu) | 0x7e00u, half);
    store_halves(out, half | ((bits >> 16) & 0x8000u));
  }
#endif
};

// The first `count` lanes only: loads fill the others with zero, stores leave the memory behind them unchanged.
template <class Format>
SLAP_FAST_INLINE Lanes load_partial(const typename Format::Stored* in, std::int64_t count) {
  typename Format::Stored buffer[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = in[i];
  return Format::load(buffer);
}
template <class Format>
SLAP_FAST_INLINE void store_partial(typename Format::Stored* out, Lanes x, std::int64_t count) {
  typename Format::Stored buffer[kLanes];
  Format::store(buffer, x);
  for (std::int64_t i = 0; i < count; ++i) out[i] = buffer[i];
}

}  // namespace slap_fast::SLAP_FAST_ISA
