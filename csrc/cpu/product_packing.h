// Packing of matrix rows into micro-kernel operands. See simd.h for the namespace.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "product_operands.h"
#include "rounding.h"

namespace slap_fast::SLAP_FAST_ISA {

SLAP_FAST_INLINE std::int64_t min(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
SLAP_FAST_INLINE std::int64_t max(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

// Matrix view that reads rows outside [first, last) as zeros.
template <class In>
struct Source {
  const typename In::Stored* data;  // row 0
  std::int64_t stride, width, first, last;

  // Rows are too far apart for the hardware prefetcher.
  SLAP_FAST_INLINE void prefetch(std::int64_t row) const {
    if (row < first || row >= last) return;
    const char* in = reinterpret_cast<const char*>(data + row * stride);
    for (std::int64_t i = 0; i < width * static_cast<std::int64_t>(sizeof *data); i += 64)
      __builtin_prefetch(in + i, 0, 3);
  }

  // kLanes values from `column` on, zeros beyond `width`.
  SLAP_FAST_INLINE Lanes load(std::int64_t row, std::int64_t column) const {
    if (row < first || row >= last) return Lanes{};
    const typename In::Stored* in = data + row * stride + column;
    return column + kLanes <= width ? In::load(in) : load_partial<In>(in, width - column);
  }
};

template <class In, class Operand>
struct Packing;

template <class In>
struct Packing<In, FloatOperand> {
  // Rows [begin, begin + count) to [count, padded], times `sign`.
  static void row_major(const Source<In>& source, std::int64_t begin, std::int64_t count, std::int64_t padded,
                        float sign, float* out) {
    for (std::int64_t row = begin; row < begin + count; ++row) {
      for (std::int64_t column = 0; column < padded; column += kLanes, out += kLanes)
        store(out, source.load(row, column) * splat(sign));
    }
  }

  // Right operand of a sum over rows: [count, padded].
  static void steps(const Source<In>& source, std::int64_t begin, std::int64_t count, std::int64_t padded, float* out) {
    row_major(source, begin, count, padded, 1.0f, out);
  }

  // Transposed panels of kLanes rows: [count / kLanes, padded, kLanes].
  static void panels(const Source<In>& source, std::int64_t begin, std::int64_t count, std::int64_t padded,
                     float* out) {
    for (std::int64_t row = begin; row < begin + count; row += kLanes) {
      for (std::int64_t column = 0; column < padded; column += kLanes) {
        alignas(64) float block[kLanes][kLanes];
        const float* lines[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          store(block[i], source.load(row + i, column));
          lines[i] = block[i];
        }
        for (int i = 0; i < kLanes; i += kColumns) {
          Lanes columns[kColumns];
          load_columns(lines, i, columns);
          for (int j = 0; j < kColumns; ++j, out += kLanes) store(out, columns[j]);
        }
      }
    }
  }
};

#if defined(__AVX512BF16__)
template <>
struct Packing<BFloat16, BFloat16Operand> {
  using Value = std::uint16_t;

  static SLAP_FAST_INLINE __m256i load(const Source<BFloat16>& source, std::int64_t row, std::int64_t column) {
    if (row < source.first || row >= source.last) return _mm256_setzero_si256();
    const Value* in = source.data + row * source.stride + column;
    const std::int64_t count = min(16, source.width - column);
    return _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1u), in);
  }

  static void row_major(const Source<BFloat16>& source, std::int64_t begin, std::int64_t count, std::int64_t padded,
                        float sign, Value* out) {
    const __m256i flip = _mm256_set1_epi16(sign < 0.0f ? static_cast<short>(0x8000) : 0);
    for (std::int64_t row = begin; row < begin + count; ++row) {
      for (std::int64_t column = 0; column < padded; column += 16, out += 16)
        _mm256_store_si256(reinterpret_cast<__m256i*>(out), _mm256_xor_si256(load(source, row, column), flip));
    }
  }

  // [count / 2, padded, 2]: pairs of rows interleaved.
  static void steps(const Source<BFloat16>& source, std::int64_t begin, std::int64_t count, std::int64_t padded,
                    Value* out) {
    for (std::int64_t row = begin; row < begin + count; row += 2) {
      for (std::int64_t column = 0; column < padded; column += 16, out += 32) {
        const __m512i even = _mm512_cvtepu16_epi32(load(source, row, column));
        const __m512i odd = _mm512_cvtepu16_epi32(load(source, row + 1, column));
        _mm512_store_si512(out, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
      }
    }
  }

  // [count / kLanes, padded / 2, kLanes, 2]: transposed in pairs of columns, each moved as one float.
  static void panels(const Source<BFloat16>& source, std::int64_t begin, std::int64_t count, std::int64_t padded,
                     Value* out) {
    for (std::int64_t row = begin; row < begin + count; row += kLanes) {
      for (std::int64_t column = 0; column < padded; column += 16) {
        alignas(64) float block[kLanes][8];
        const float* lines[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(block[i]), load(source, row + i, column));
          lines[i] = block[i];
        }
        Lanes columns[kColumns];
        load_columns(lines, 0, columns);
        for (int j = 0; j < kColumns; ++j, out += 2 * kLanes) _mm512_store_si512(out, _mm512_castps_si512(columns[j]));
      }
    }
  }
};
#endif

// Calls visit(format) with the Float32, BFloat16 or Float16 of `dtype`.
template <class Visit>
void dispatch_dtype(DType dtype, Visit visit) {
#if !defined(__AVX512BF16__)
  if (dtype == DType::float32) return visit(Float32{});
  if (dtype == DType::float16) return visit(Float16{});
#endif
  (void)dtype;
  visit(BFloat16{});
}

}  // namespace slap_fast::SLAP_FAST_ISA
