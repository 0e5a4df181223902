// Float and double vectors of the instruction set this translation unit is compiled for.
//
// Everything is in a namespace named after the instruction set, so that the linker cannot merge inline functions of two
// builds. For the same reason such units include no standard header with inline functions.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace slap_fast::SLAP_FAST_ISA {

#if defined(__AVX512F__)

struct Doubles {
  static constexpr int width = 8;
  __m512d v = _mm512_setzero_pd();

  void add_square(Doubles x) { v = _mm512_fmadd_pd(x.v, x.v, v); }
  void store(double* out) const { _mm512_storeu_pd(out, v); }
};

struct Floats {
  static constexpr int width = 16;
  __m512 v = _mm512_setzero_ps();

  static Floats load(const float* in) { return {_mm512_loadu_ps(in)}; }
  Doubles low() const { return {_mm512_cvtps_pd(_mm512_castps512_ps256(v))}; }
  Doubles high() const { return {_mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)))}; }
  void update_max(Floats x) { v = _mm512_max_ps(v, x.v); }
  void store(float* out) const { _mm512_storeu_ps(out, v); }

  // |x|, or 0 where x is not finite; adds the number of non-finite lanes to `nonfinite`.
  Floats finite_magnitude(std::int32_t& nonfinite) const {
    const __m512 infinity = _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000));
    const __m512 magnitude = _mm512_abs_ps(v);
    const __mmask16 finite = _mm512_cmp_ps_mask(magnitude, infinity, _CMP_LT_OQ);
    nonfinite += width - __builtin_popcount(finite);
    return {_mm512_maskz_mov_ps(finite, magnitude)};
  }
};

#elif defined(__AVX2__)

struct Doubles {
  static constexpr int width = 4;
  __m256d v = _mm256_setzero_pd();

  void add_square(Doubles x) { v = _mm256_fmadd_pd(x.v, x.v, v); }
  void store(double* out) const { _mm256_storeu_pd(out, v); }
};

struct Floats {
  static constexpr int width = 8;
  __m256 v = _mm256_setzero_ps();

  static Floats load(const float* in) { return {_mm256_loadu_ps(in)}; }
  Doubles low() const { return {_mm256_cvtps_pd(_mm256_castps256_ps128(v))}; }
  Doubles high() const { return {_mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))}; }
  void update_max(Floats x) { v = _mm256_max_ps(v, x.v); }
  void store(float* out) const { _mm256_storeu_ps(out, v); }

  Floats finite_magnitude(std::int32_t& nonfinite) const {
    const __m256 infinity = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
    const __m256 magnitude = _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
    const __m256 finite = _mm256_cmp_ps(magnitude, infinity, _CMP_LT_OQ);
    nonfinite += width - __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(finite)));
    return {_mm256_and_ps(magnitude, finite)};
  }
};

#else

// Loops over 16 bytes, vectorized by the compiler to SSE2 or NEON.
struct Doubles {
  static constexpr int width = 2;
  double v[width] = {};

  void add_square(Doubles x) {
    for (int i = 0; i < width; ++i) v[i] += x.v[i] * x.v[i];
  }
  void store(double* out) const {
    for (int i = 0; i < width; ++i) out[i] = v[i];
  }
};

struct Floats {
  static constexpr int width = 4;
  float v[width] = {};

  static Floats load(const float* in) { return {{in[0], in[1], in[2], in[3]}}; }
  Doubles low() const { return {{v[0], v[1]}}; }
  Doubles high() const { return {{v[2], v[3]}}; }
  void update_max(Floats x) {
    for (int i = 0; i < width; ++i) v[i] = v[i] < x.v[i] ? x.v[i] : v[i];
  }
  void store(float* out) const {
    for (int i = 0; i < width; ++i) out[i] = v[i];
  }

  Floats finite_magnitude(std::int32_t& nonfinite) const {
    Floats magnitude;
    for (int i = 0; i < width; ++i) {
      const float x = __builtin_fabsf(v[i]);
      const bool finite = x < __builtin_inff();
      nonfinite += !finite;
      magnitude.v[i] = finite ? x : 0.0f;
    }
    return magnitude;
  }
};

#endif

}  // namespace slap_fast::SLAP_FAST_ISA
