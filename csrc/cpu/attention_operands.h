// What attention multiplies, in the instruction set that this translation unit is compiled for: elements as they lie in
// tensors, operands as the micro-kernel takes them, and the micro-kernel itself. See lanes.h for the namespace.
#pragma once

#include <cstdint>

#include "lanes.h"

#if defined(__clang__)
#define SLAP_FAST_UNROLL _Pragma("unroll")
#else
#define SLAP_FAST_UNROLL _Pragma("GCC unroll 16")
#endif

namespace slap_fast::SLAP_FAST_ISA {

struct Float32 {
  using Storage = float;
  static SLAP_FAST_INLINE Lanes load(const Storage* in) { return load_unaligned(in); }
  static SLAP_FAST_INLINE void store(Storage* out, Lanes x) { store_unaligned(out, x); }
};

typedef std::uint16_t ShortLanes __attribute__((vector_size(kLanes * 2)));
typedef std::uint16_t UnalignedShortLanes __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
typedef std::uint32_t UnsignedLanes __attribute__((vector_size(kLanes * 4)));

struct BFloat16 {
  using Storage = std::uint16_t;
  static SLAP_FAST_INLINE Lanes load(const Storage* in) {
    const ShortLanes bits = *reinterpret_cast<const UnalignedShortLanes*>(in);
    return reinterpret_cast<Lanes>(__builtin_convertvector(bits, UnsignedLanes) << 16);
  }
  // To the nearest, ties to even; a NaN stays one.
  static SLAP_FAST_INLINE void store(Storage* out, Lanes x) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh(x));
#else
    const UnsignedLanes bits = reinterpret_cast<UnsignedLanes>(x);
    const UnsignedLanes rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const UnsignedLanes chosen = x == x ? rounded : (bits >> 16 | 0x40u);
    *reinterpret_cast<UnalignedShortLanes*>(out) = __builtin_convertvector(chosen, ShortLanes);
#endif
  }
};

struct Float16 {
  using Storage = std::uint16_t;
#if defined(__AVX512F__)
  static SLAP_FAST_INLINE Lanes load(const Storage* in) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
  }
  static SLAP_FAST_INLINE void store(Storage* out, Lanes x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__AVX2__)
  static SLAP_FAST_INLINE Lanes load(const Storage* in) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
  }
  static SLAP_FAST_INLINE void store(Storage* out, Lanes x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static SLAP_FAST_INLINE Lanes load(const Storage* in) {
    const UnsignedLanes bits =
        __builtin_convertvector(*reinterpret_cast<const UnalignedShortLanes*>(in), UnsignedLanes);
    const UnsignedLanes magnitude = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
    // Moving the exponent by 112 is a product, which also gives subnormal halves their value.
    const Lanes finite = reinterpret_cast<Lanes>(magnitude) * 0x1p112f;
    const UnsignedLanes value =
        magnitude >= 0x0f800000u ? magnitude + 0x70000000u : reinterpret_cast<UnsignedLanes>(finite);
    return reinterpret_cast<Lanes>(value | sign);
  }
  static SLAP_FAST_INLINE void store(Storage* out, Lanes x) {
    const UnsignedLanes bits = reinterpret_cast<UnsignedLanes>(x);
    const UnsignedLanes magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
    // Below 2^-14 a half counts units of 2^-24: adding 1/2 rounds to them.
    const UnsignedLanes small = reinterpret_cast<UnsignedLanes>(reinterpret_cast<Lanes>(magnitude) + 0.5f) - 0x3f000000u;
    const UnsignedLanes normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    UnsignedLanes half = magnitude < 0x38800000u ? small : normal;
    half = magnitude >= 0x477ff000u ? UnsignedLanes{} + 0x7c00u : half;
    half = magnitude > 0x7f800000u ? UnsignedLanes{} + 0x7e00u : half;
    *reinterpret_cast<UnalignedShortLanes*>(out) = __builtin_convertvector(half | sign, ShortLanes);
  }
#endif
};

// The `count` elements at `in`, fewer than kLanes, with zeros behind.
template <class In>
SLAP_FAST_INLINE Lanes load_some(const typename In::Storage* in, std::int64_t count) {
  typename In::Storage whole[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) whole[i] = in[i];
  return In::load(whole);
}

template <class In>
SLAP_FAST_INLINE void store_some(typename In::Storage* out, Lanes x, std::int64_t count) {
  typename In::Storage whole[kLanes];
  In::store(whole, x);
  for (std::int64_t i = 0; i < count; ++i) out[i] = whole[i];
}

// An operand's elements are taken kDepth at a time: a step adds kDepth products to each lane.
struct FloatOperand {
  using Value = float;
  using Vector = Lanes;
  static constexpr int kDepth = 1;
  static SLAP_FAST_INLINE Vector load(const Value* in) { return slap_fast::SLAP_FAST_ISA::load(in); }
  static SLAP_FAST_INLINE Vector broadcast(const Value* in) { return splat(*in); }
  static SLAP_FAST_INLINE void store(Value* out, Lanes x) { slap_fast::SLAP_FAST_ISA::store(out, x); }
  // kDepth rows as a step of a sum over rows.
  static SLAP_FAST_INLINE void store_step(Value* out, const Lanes (&rows)[kDepth]) { store(out, rows[0]); }
  static SLAP_FAST_INLINE Lanes multiply_add(Vector a, Vector b, Lanes c) { return fma(a, b, c); }
};

#if defined(__AVX512BF16__)
struct BFloat16Operand {
  using Value = std::uint16_t;
  using Vector = __m512bh;
  static constexpr int kDepth = 2;
  static SLAP_FAST_INLINE Vector load(const Value* in) { return (Vector)_mm512_load_si512(in); }
  static SLAP_FAST_INLINE Vector broadcast(const Value* in) {
    std::int32_t pair;
    __builtin_memcpy(&pair, in, sizeof pair);
    return (Vector)_mm512_set1_epi32(pair);
  }
  static SLAP_FAST_INLINE void store(Value* out, Lanes x) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh(x));
  }
  static SLAP_FAST_INLINE void store_step(Value* out, const Lanes (&rows)[kDepth]) {
    const __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(rows[0]));
    const __m512i odd = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(rows[1]));
    _mm512_store_si512(out, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
  }
  static SLAP_FAST_INLINE Lanes multiply_add(Vector a, Vector b, Lanes c) { return _mm512_dpbf16_ps(c, a, b); }
};
#endif

// The operand for bfloat16 where there is an instruction for its products: other elements have AVX-512's code then.
#if defined(__AVX512BF16__)
using BestOperand = BFloat16Operand;
#else
using BestOperand = FloatOperand;
#endif

// Rows and vectors of a micro-kernel's tile of accumulators.
#if defined(__AVX512F__)
constexpr int kRows = 8, kMostVectors = 3;
#elif defined(__AVX2__)
constexpr int kRows = 4, kMostVectors = 3;
#else
constexpr int kRows = 4, kMostVectors = 2;
#endif

template <int kVectors>
struct Tile {
  Lanes at[kRows][kVectors];

  SLAP_FAST_INLINE void clear() {
    SLAP_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      SLAP_FAST_UNROLL
      for (int v = 0; v < kVectors; ++v) at[r][v] = Lanes{};
    }
  }

  SLAP_FAST_INLINE void load(const float* in, std::int64_t stride) {
    SLAP_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      SLAP_FAST_UNROLL
      for (int v = 0; v < kVectors; ++v) at[r][v] = slap_fast::SLAP_FAST_ISA::load(in + r * stride + v * kLanes);
    }
  }

  // Each row times its factor.
  SLAP_FAST_INLINE void load_scaled(const float* in, std::int64_t stride, const float* factors) {
    SLAP_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      SLAP_FAST_UNROLL
      for (int v = 0; v < kVectors; ++v)
        at[r][v] = slap_fast::SLAP_FAST_ISA::load(in + r * stride + v * kLanes) * splat(factors[r]);
    }
  }

  SLAP_FAST_INLINE void store(float* out, std::int64_t stride) const {
    SLAP_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      SLAP_FAST_UNROLL
      for (int v = 0; v < kVectors; ++v) slap_fast::SLAP_FAST_ISA::store(out + r * stride + v * kLanes, at[r][v]);
    }
  }
};

// tile[r][v] += sum over steps of a[r] times b[v]. In `a`, rows and steps are a_row and a_step apart; in `b`, vectors and
// steps b_vector and b_step.
template <class Operand, int kVectors>
SLAP_FAST_INLINE void multiply(const typename Operand::Value* a, std::int64_t a_row, std::int64_t a_step,
                               const typename Operand::Value* b, std::int64_t b_vector, std::int64_t b_step,
                               std::int64_t steps, Tile<kVectors>& tile) {
  for (std::int64_t step = 0; step < steps; ++step) {
    typename Operand::Vector columns[kVectors];
    SLAP_FAST_UNROLL
    for (int v = 0; v < kVectors; ++v) columns[v] = Operand::load(b + v * b_vector);
    SLAP_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const typename Operand::Vector row = Operand::broadcast(a + r * a_row);
      SLAP_FAST_UNROLL
      for (int v = 0; v < kVectors; ++v) tile.at[r][v] = Operand::multiply_add(row, columns[v], tile.at[r][v]);
    }
    a += a_step;
    b += b_step;
  }
}

// Calls visit(tile, first) with tiles that together cover `count` vectors.
#define SLAP_FAST_LAMBDA __attribute__((always_inline))

template <class Visit>
SLAP_FAST_INLINE void visit_vectors(std::int64_t count, Visit visit) {
  for (std::int64_t first = 0; first < count;) {
    const std::int64_t left = count - first;
    if (kMostVectors >= 3 && left >= 3 && left != 4) {
      visit(Tile<3>{}, first);
      first += 3;
    } else if (left >= 2) {
      visit(Tile<2>{}, first);
      first += 2;
    } else {
      visit(Tile<1>{}, first);
      first += 1;
    }
  }
}

}  // namespace slap_fast::SLAP_FAST_ISA
