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
    const Lanes shifted = reinterpret_cast<Lanes>(magnitude) + 0.5f;
    const UnsignedLanes small = reinterpret_cast<UnsignedLanes>(shifted) - 0x3f000000u;
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

// A matrix as the left side of a product: each of its rows and steps in its place.
template <class Operand>
struct Left {
  const typename Operand::Value* data;
  std::int64_t row, step;  // how far apart
};

// The right side: vectors of kLanes columns, and steps.
template <class Operand>
struct Right {
  const typename Operand::Value* data;
  std::int64_t vector, step;
};

// kRows rows of results, and what is added to: nothing, what they hold, or that times a factor for each row.
struct Results {
  float* data;
  std::int64_t row;
  bool add;
  const float* factors;
};

// results[r][v] = sum over steps of left[r] times right[v], in registers. One function for all that multiplies: inlined
// where they are used, its copies would make most of the code.
template <class Operand, int kVectors>
__attribute__((noinline)) void multiply_tile(Left<Operand> left, Right<Operand> right, std::int64_t steps,
                                             Results results) {
  Lanes tile[kRows][kVectors];
  SLAP_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    SLAP_FAST_UNROLL
    for (int v = 0; v < kVectors; ++v) tile[r][v] = Lanes{};
  }
  if (results.add) {
    SLAP_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Lanes factor = splat(results.factors ? results.factors[r] : 1.0f);
      SLAP_FAST_UNROLL
      for (int v = 0; v < kVectors; ++v) tile[r][v] = load(results.data + r * results.row + v * kLanes) * factor;
    }
  }
  for (std::int64_t step = 0; step < steps; ++step) {
    typename Operand::Vector columns[kVectors];
    SLAP_FAST_UNROLL
    for (int v = 0; v < kVectors; ++v) columns[v] = Operand::load(right.data + v * right.vector);
    SLAP_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const typename Operand::Vector row = Operand::broadcast(left.data + r * left.row);
      SLAP_FAST_UNROLL
      for (int v = 0; v < kVectors; ++v) tile[r][v] = Operand::multiply_add(row, columns[v], tile[r][v]);
    }
    left.data += left.step;
    right.data += right.step;
  }
  SLAP_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    SLAP_FAST_UNROLL
    for (int v = 0; v < kVectors; ++v) store(results.data + r * results.row + v * kLanes, tile[r][v]);
  }
}

// The same for `vectors` vectors, kMostVectors at most.
template <class Operand>
void multiply(std::int64_t vectors, Left<Operand> left, Right<Operand> right, std::int64_t steps, Results results) {
  if (vectors == 1) return multiply_tile<Operand, 1>(left, right, steps, results);
  if (vectors == 2) return multiply_tile<Operand, 2>(left, right, steps, results);
  if constexpr (kMostVectors == 3)
    if (vectors == 3) return multiply_tile<Operand, 3>(left, right, steps, results);
}

// How many of `left` vectors to take at once.
SLAP_FAST_INLINE std::int64_t some_vectors(std::int64_t left) {
  if (left == 4) return 2;
  return left < kMostVectors ? left : kMostVectors;
}

#define SLAP_FAST_LAMBDA __attribute__((always_inline))

}  // namespace slap_fast::SLAP_FAST_ISA
