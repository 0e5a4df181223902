// GEMM micro-kernel and its operand types, shared by attention and matrix products. See simd.h for the namespace.
#pragma once

#include <cstdint>

#include "stored_lanes.h"

#if defined(__clang__)
#define SLAP_FAST_UNROLL _Pragma("unroll")
#else
#define SLAP_FAST_UNROLL _Pragma("GCC unroll 16")
#endif

namespace slap_fast::SLAP_FAST_ISA {

// Operand types. One step of the micro-kernel consumes kDepth elements of the summed dimension per lane.
struct FloatOperand {
  using Value = float;
  using Vector = Lanes;
  static constexpr int kDepth = 1;
  static SLAP_FAST_INLINE Vector load(const Value* in) { return slap_fast::SLAP_FAST_ISA::load(in); }
  static SLAP_FAST_INLINE Vector broadcast(const Value* in) { return splat(*in); }
  static SLAP_FAST_INLINE void store(Value* out, Lanes x) { slap_fast::SLAP_FAST_ISA::store(out, x); }
  // Interleaves kDepth rows as one step of a sum over rows.
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

// AVX512-BF16 builds handle bfloat16 only; other dtypes run the AVX-512 build (see SLAP_FAST_DISPATCH_BF16).
#if defined(__AVX512BF16__)
using BestOperand = BFloat16Operand;
#else
using BestOperand = FloatOperand;
#endif

// Accumulator tile of the micro-kernel: kRows rows x kMaxVectors vectors, as many as fit in registers.
#if defined(__AVX512F__)
constexpr int kRows = 8, kMaxVectors = 3;
#elif defined(__AVX2__)
constexpr int kRows = 4, kMaxVectors = 3;
#else
constexpr int kRows = 4, kMaxVectors = 2;
#endif

// Left operand of the micro-kernel; strides in elements.
template <class Operand>
struct Left {
  const typename Operand::Value* data;
  std::int64_t row, step;  // strides
};

// Right operand, in vectors of kLanes columns; strides in elements.
template <class Operand>
struct Right {
  const typename Operand::Value* data;
  std::int64_t vector, step;
};

// Output tile of kRows rows: overwritten, or with `accumulate` added to, after scaling row r by factors[r] if not null.
struct Results {
  float* data;
  std::int64_t row;
  bool accumulate;
  const float* factors;
};

// results[r][v] = sum over steps of left[r] * right[v], accumulated in registers. noinline: inlined copies would
// dominate the code size.
template <class Operand, int kVectors>
__attribute__((noinline)) void multiply_tile(Left<Operand> left, Right<Operand> right, std::int64_t steps,
                                             Results results) {
  Lanes tile[kRows][kVectors];
  SLAP_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    SLAP_FAST_UNROLL
    for (int v = 0; v < kVectors; ++v) tile[r][v] = Lanes{};
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
  // Previous results are added last: starting from a large value would lose low-order bits at every step.
  if (results.accumulate) {
    SLAP_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Lanes factor = splat(results.factors ? results.factors[r] : 1.0f);
      SLAP_FAST_UNROLL
      for (int v = 0; v < kVectors; ++v)
        tile[r][v] = fma(load_unaligned(results.data + r * results.row + v * kLanes), factor, tile[r][v]);
    }
  }
  SLAP_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    SLAP_FAST_UNROLL
    for (int v = 0; v < kVectors; ++v) store_unaligned(results.data + r * results.row + v * kLanes, tile[r][v]);
  }
}

// multiply_tile for 1 to kMaxVectors vectors.
template <class Operand>
void multiply(std::int64_t vectors, Left<Operand> left, Right<Operand> right, std::int64_t steps, Results results) {
  if (vectors == 1) return multiply_tile<Operand, 1>(left, right, steps, results);
  if (vectors == 2) return multiply_tile<Operand, 2>(left, right, steps, results);
  if constexpr (kMaxVectors == 3)
    if (vectors == 3) return multiply_tile<Operand, 3>(left, right, steps, results);
}

// Vectors of the next tile if `left` remain; 4 are split 2 + 2, not 3 + 1.
SLAP_FAST_INLINE std::int64_t vectors_per_tile(std::int64_t left) {
  if (left == 4) return 2;
  return left < kMaxVectors ? left : kMaxVectors;
}

}  // namespace slap_fast::SLAP_FAST_ISA
