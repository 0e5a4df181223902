// Vectors of kLanes floats and elementwise math. See simd.h for the namespace and the ban on standard headers.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace slap_fast::SLAP_FAST_ISA {

// kColumns: consecutive floats per lane in load_columns() and store_columns().
#if defined(__AVX512F__)
constexpr int kLanes = 16, kColumns = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kColumns = 4;
#else
constexpr int kLanes = 4, kColumns = 4;  // vectorized by the compiler to SSE2 or NEON
#endif

typedef float Lanes __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t IntLanes __attribute__((vector_size(kLanes * 4)));
typedef std::uint32_t WordLanes __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedLanes __attribute__((vector_size(kLanes * 4), aligned(4)));

#define SLAP_FAST_INLINE inline __attribute__((always_inline))
#define SLAP_FAST_LAMBDA __attribute__((always_inline))

SLAP_FAST_INLINE Lanes load(const float* in) { return *reinterpret_cast<const Lanes*>(in); }
SLAP_FAST_INLINE Lanes load_unaligned(const float* in) { return *reinterpret_cast<const UnalignedLanes*>(in); }
SLAP_FAST_INLINE void store(float* out, Lanes x) { *reinterpret_cast<Lanes*>(out) = x; }
SLAP_FAST_INLINE void store_unaligned(float* out, Lanes x) { *reinterpret_cast<UnalignedLanes*>(out) = x; }
SLAP_FAST_INLINE Lanes splat(float x) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#else
  return Lanes{x, x, x, x};
#endif
}
SLAP_FAST_INLINE WordLanes words(Lanes x) { return reinterpret_cast<WordLanes>(x); }
SLAP_FAST_INLINE Lanes floats(WordLanes x) { return reinterpret_cast<Lanes>(x); }
SLAP_FAST_INLINE Lanes select(IntLanes mask, Lanes x, Lanes y) { return mask ? x : y; }

// fma: a * b + c, fnma: c - a * b, fms: a * b - c. Fused if the instruction set has FMA.
SLAP_FAST_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
SLAP_FAST_INLINE Lanes fnma(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
  return _mm512_fnmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fnmadd_ps(a, b, c);
#else
  return c - a * b;
#endif
}
SLAP_FAST_INLINE Lanes fms(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
  return _mm512_fmsub_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmsub_ps(a, b, c);
#else
  return a * b - c;
#endif
}

// max(x, bound). Returns x if either is NaN: a NaN in x propagates, one in `bound` does not.
SLAP_FAST_INLINE Lanes max(Lanes x, Lanes bound) {
#if defined(__AVX512F__)
  return _mm512_max_ps(bound, x);
#elif defined(__AVX2__)
  return _mm256_max_ps(bound, x);
#else
  return select(x < bound, bound, x);
#endif
}

SLAP_FAST_INLINE Lanes square_root(Lanes x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// log(1 + f) + e log(2) for 1 + f in [sqrt(1/2), sqrt(2)), with log(1 + f) = f - f^2 / 2 + f^3 P(f), P minimax.
SLAP_FAST_INLINE Lanes logarithm_of_parts(Lanes f, Lanes e) {
  const Lanes square = f * f;
  Lanes p = splat(7.0376836292e-2f);
  p = fma(p, f, splat(-1.1514610310e-1f));
  p = fma(p, f, splat(1.1676998740e-1f));
  p = fma(p, f, splat(-1.2420140846e-1f));
  p = fma(p, f, splat(1.4249322787e-1f));
  p = fma(p, f, splat(-1.6668057665e-1f));
  p = fma(p, f, splat(2.0000714765e-1f));
  p = fma(p, f, splat(-2.4999993993e-1f));
  p = fma(p, f, splat(3.3333331174e-1f));
  // ln(2) split in two: e times the high part is exact.
  Lanes tail = fma(p * f, square, e * -2.12194440e-4f);
  tail = fma(square, splat(-0.5f), tail);
  return fma(e, splat(0.693359375f), f + tail);
}

// Natural logarithm of positive normal numbers and infinity, error below 1.5 ulp. NaN propagates.
SLAP_FAST_INLINE Lanes logarithm(Lanes x) {
  // Unsigned subtraction wraps for NaN and non-positive x; the shift is arithmetic.
  const IntLanes exponent = reinterpret_cast<IntLanes>(words(x) - 0x3f3504f3u) >> 23;
  const Lanes f = floats(words(x) - (reinterpret_cast<WordLanes>(exponent) << 23)) - 1.0f;
  const Lanes result = logarithm_of_parts(f, __builtin_convertvector(exponent, Lanes));
  return select(x < __builtin_inff(), result, x);
}

// log(1 + x) for x in [0, 1].
SLAP_FAST_INLINE Lanes logarithm_above_1(Lanes x) {
  const IntLanes upper = x > 0.414213562f;
  return logarithm_of_parts(select(upper, (x - 1.0f) * 0.5f, x), select(upper, splat(1.0f), Lanes{}));
}

// 2^n for the integer n nearest to x, -127 <= n <= 127 (2^-127 gives 0): adding 1.5 * 2^23 rounds x to n in the low
// mantissa bits, adding 127 more gives the biased exponent. Undefined for NaN: callers multiply the result by a NaN.
constexpr float kToExponent = 12582912.0f + 127.0f;
SLAP_FAST_INLINE Lanes power_of_2(Lanes shifted) { return floats(words(shifted) << 23); }

// 2^x for x < 127, relative error below 2e-7. Results below 2^-126 may flush to 0; any NaN propagates. x = n + f and
// 2^f = 1 + f P(f), P minimax over [0, 1) with AVX-512 and over [-1/2, 1/2] otherwise.
SLAP_FAST_INLINE Lanes exponential2(Lanes x) {
#if defined(__AVX512F__)
  const Lanes f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // 0 if x is infinite
  Lanes p = splat(1.8671300741e-3f);
  p = fma(p, f, splat(9.0170303107e-3f));
  p = fma(p, f, splat(5.5799913115e-2f));
  p = fma(p, f, splat(2.4016445015e-1f));
  p = fma(p, f, splat(6.9315131181e-1f));
  p = fma(p, f, splat(1.0f));
  return _mm512_scalef_ps(p, x);
#else
  const Lanes clamped = max(x, splat(-127.0f));
  const Lanes shifted = clamped + kToExponent;
  const Lanes f = clamped - (shifted - kToExponent);
  Lanes p = splat(1.3264727124e-3f);
  p = fma(p, f, splat(9.6715126448e-3f));
  p = fma(p, f, splat(5.5507337435e-2f));
  p = fma(p, f, splat(2.4022242085e-1f));
  p = fma(p, f, splat(6.9314697760e-1f));
  p = fma(p, f, splat(1.0f));
  return p * power_of_2(shifted);
#endif
}

// e^x for x < 88, relative error below 7e-8 and unbiased, so that errors do not accumulate in sums of differences.
// Results below e^-87 may flush to 0; any NaN propagates. x = n ln(2) + r and e^r = 1 + r + r^2 P(r), P minimax.
SLAP_FAST_INLINE Lanes exponential(Lanes x) {
#if defined(__AVX512F__)
  const Lanes clamped = max(x, splat(-106.0f));  // rounds to 0
#else
  const Lanes clamped = max(x, splat(-88.0f));  // power_of_2() gives 0
#endif
  const Lanes shifted = fma(clamped, splat(1.44269504f), splat(kToExponent)), n = shifted - kToExponent;
  // ln(2) split in two: n times the high part is exact.
  const Lanes r = fma(n, splat(2.12194440e-4f), fnma(n, splat(0.693359375f), clamped));
  Lanes p = splat(1.3814173872e-3f);
  p = fma(p, r, splat(8.3689214662e-3f));
  p = fma(p, r, splat(4.1668407619e-2f));
  p = fma(p, r, splat(1.6666519642e-1f));
  p = fma(p, r, splat(4.9999994040e-1f));
  p = fma(r * r, p, r) + 1.0f;
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  return p * power_of_2(shifted);
#endif
}

// 1 / (1 + e^-x).
SLAP_FAST_INLINE Lanes sigmoid(Lanes x) {
  const Lanes decay = exponential(-max(x, -x)), positive = 1.0f / (decay + 1.0f);  // e^-|x|, sigmoid(|x|)
  return select(x < 0.0f, positive * decay, positive);
}

// Transposes each 4 x 4 block of four vectors.
SLAP_FAST_INLINE void transpose_blocks(Lanes* r) {
#if defined(__AVX512F__)
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
  const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
  const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
  const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
  r[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
  r[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
  r[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
  r[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
#elif defined(__AVX2__)
  const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
  const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
  r[0] = _mm256_shuffle_ps(a, c, 0x44);
  r[1] = _mm256_shuffle_ps(a, c, 0xee);
  r[2] = _mm256_shuffle_ps(b, d, 0x44);
  r[3] = _mm256_shuffle_ps(b, d, 0xee);
#else
  for (int i = 0; i < 4; ++i) {
    for (int j = i + 1; j < 4; ++j) {
      const float x = r[i][j];
      r[i][j] = r[j][i];
      r[j][i] = x;
    }
  }
#endif
}

// Horizontal reduction: lane i of the result is rows[i] reduced by combine(Lanes, Lanes).
template <class Combine>
SLAP_FAST_INLINE Lanes reduce_rows(const Lanes (&rows)[kLanes], Combine combine) {
  Lanes t[4];
  for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
    const Lanes low =
        combine(_mm512_shuffle_f32x4(rows[i], rows[i + 4], 0x44), _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0xee));
    const Lanes high = combine(_mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0x44),
                               _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0xee));
    t[i] = combine(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
#elif defined(__AVX2__)
    t[i] =
        combine(_mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20), _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31));
#else
    t[i] = rows[i];
#endif
  }
  transpose_blocks(t);
  return combine(combine(t[0], t[1]), combine(t[2], t[3]));
}

// Gather-transpose: rows[j][lane] = sources[lane][begin + j].
SLAP_FAST_INLINE void load_columns(const float* const* sources, std::int64_t begin, Lanes (&rows)[kColumns]) {
#if defined(__AVX512F__)
  const auto half = [&](int lane) { return _mm256_loadu_ps(sources[lane] + begin); };
  Lanes t[8];
  for (int i = 0; i < 8; ++i) {
    const int lane = i < 4 ? i : i + 4;
    t[i] = _mm512_insertf32x8(_mm512_castps256_ps512(half(lane)), half(lane + 4), 1);
  }
  transpose_blocks(t);
  transpose_blocks(t + 4);
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88);
    rows[i + 4] = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
  }
#elif defined(__AVX2__)
  const auto half = [&](int lane) { return _mm_loadu_ps(sources[lane] + begin); };
  for (int i = 0; i < 4; ++i) rows[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(half(i)), half(i + 4), 1);
  transpose_blocks(rows);
#else
  for (int i = 0; i < 4; ++i) rows[i] = load_unaligned(sources[i] + begin);
  transpose_blocks(rows);
#endif
}

// The inverse: targets[lane][begin + j] = rows[j][lane].
SLAP_FAST_INLINE void store_columns(const Lanes (&rows)[kColumns], float* const* targets, std::int64_t begin) {
  Lanes t[kColumns];
#if defined(__AVX512F__)
  for (int i = 0; i < 4; ++i) {
    const Lanes low = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0x44);
    const Lanes high = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0xee);
    t[i] = _mm512_shuffle_f32x4(low, low, 0xd8);
    t[i + 4] = _mm512_shuffle_f32x4(high, high, 0xd8);
  }
  transpose_blocks(t);
  transpose_blocks(t + 4);
  for (int i = 0; i < 8; ++i) {
    const int lane = i < 4 ? i : i + 4;
    _mm256_storeu_ps(targets[lane] + begin, _mm512_castps512_ps256(t[i]));
    _mm256_storeu_ps(targets[lane + 4] + begin, _mm512_extractf32x8_ps(t[i], 1));
  }
#else
  for (int i = 0; i < 4; ++i) t[i] = rows[i];
  transpose_blocks(t);
  for (int i = 0; i < 4; ++i) {
#if defined(__AVX2__)
    _mm_storeu_ps(targets[i] + begin, _mm256_castps256_ps128(t[i]));
    _mm_storeu_ps(targets[i + 4] + begin, _mm256_extractf128_ps(t[i], 1));
#else
    store_unaligned(targets[i] + begin, t[i]);
#endif
  }
#endif
}

}  // namespace slap_fast::SLAP_FAST_ISA
