// DFTs of compile-time size in registers, and their adjoints; sizes 2^a, 3 * 2^a and 5 * 2^a.
//
// Decimation in time down to the odd factor. With t = W^k b, a butterfly's outputs a + t and a - t are computed as
// u = a + t and 2a - u: six FMAs instead of the eight or more operations of a plain radix-16 pass.
#pragma once

#include <utility>

#if defined(__CUDACC__)
#define SLAP_FAST_DEVICE __host__ __device__ __forceinline__
#define SLAP_FAST_UNROLL _Pragma("unroll")
#define SLAP_FAST_UNROLL_4 _Pragma("unroll 4")
#define SLAP_FAST_NO_UNROLL _Pragma("unroll 1")
#else
#define SLAP_FAST_DEVICE inline
#define SLAP_FAST_UNROLL
#define SLAP_FAST_UNROLL_4
#define SLAP_FAST_NO_UNROLL
#endif

namespace slap_fast::cuda {

struct alignas(8) Complex {
  float re;
  float im;
};

SLAP_FAST_DEVICE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
SLAP_FAST_DEVICE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
SLAP_FAST_DEVICE Complex operator*(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
SLAP_FAST_DEVICE Complex conj(Complex a) { return {a.re, -a.im}; }

// constexpr cos(2 pi k / n) by its power series; |angle| <= pi.
constexpr double cosine(int k, int n) {
  const int m = ((k % n) + n) % n;
  const double angle = 2.0 * 3.14159265358979323846 * (2 * m > n ? m - n : m) / n;
  double sum = 1.0, term = 1.0;
  for (int i = 1; i < 24; ++i) {
    term *= -angle * angle / ((2 * i - 1) * (2 * i));
    sum += term;
  }
  return sum;
}
constexpr double sine(int k, int n) { return cosine(4 * k - n, 4 * n); }

template <int K, int N>
struct Root {  // exp(2 pi i K / N)
  static constexpr float re = static_cast<float>(cosine(K, N));
  static constexpr float im = static_cast<float>(sine(K, N));
};

// u = a + W b and v = a - W b with W = exp(-2 pi i K / N).
template <int K, int N>
SLAP_FAST_DEVICE void butterfly(Complex a, Complex b, Complex& u, Complex& v) {
  if constexpr (K == 0) {
    u = a + b;
    v = a - b;
  } else if constexpr (4 * K == N) {
    u = {a.re + b.im, a.im - b.re};
    v = {a.re - b.im, a.im + b.re};
  } else {
    constexpr float c = Root<K, N>::re, s = Root<K, N>::im;
    u.re = a.re + c * b.re + s * b.im;
    u.im = a.im + c * b.im - s * b.re;
    v.re = 2.0f * a.re - u.re;
    v.im = 2.0f * a.im - u.im;
  }
}

// out[k] = sum over n of in[n * Stride] exp(-2 pi i n k / N).
template <int N>
struct Dft {
  template <int Stride>
  static SLAP_FAST_DEVICE void run(const Complex* in, Complex* out) {
    if constexpr (N == 1) {
      out[0] = in[0];
    } else if constexpr (N % 2 == 0) {
      Complex even[N / 2], odd[N / 2];
      Dft<N / 2>::template run<2 * Stride>(in, even);
      Dft<N / 2>::template run<2 * Stride>(in + Stride, odd);
      combine(even, odd, out, std::make_integer_sequence<int, N / 2>());
    } else {
      odd_size<Stride>(in, out, std::make_integer_sequence<int, N / 2>());
    }
  }

 private:
  template <int... K>
  static SLAP_FAST_DEVICE void combine(const Complex* even, const Complex* odd, Complex* out,
                                       std::integer_sequence<int, K...>) {
    (butterfly<K, N>(even[K], odd[K], out[K], out[K + N / 2]), ...);
  }

  template <int Stride, int... I>
  static SLAP_FAST_DEVICE void odd_size(const Complex* in, Complex* out, std::integer_sequence<int, I...> half) {
    const Complex sum[] = {(in[(I + 1) * Stride] + in[(N - 1 - I) * Stride])...};
    const Complex difference[] = {(in[(I + 1) * Stride] - in[(N - 1 - I) * Stride])...};
    out[0] = in[0];
    ((out[0] = out[0] + sum[I]), ...);
    (pair<I + 1>(in[0], sum, difference, out, half), ...);
  }

  template <int K, int... I>
  static SLAP_FAST_DEVICE void pair(Complex a, const Complex* sum, const Complex* difference, Complex* out,
                                    std::integer_sequence<int, I...>) {
    Complex b{0.0f, 0.0f};
    ((a.re += Root<(I + 1) * K % N, N>::re * sum[I].re), ...);
    ((a.im += Root<(I + 1) * K % N, N>::re * sum[I].im), ...);
    ((b.re += Root<(I + 1) * K % N, N>::im * difference[I].re), ...);
    ((b.im += Root<(I + 1) * K % N, N>::im * difference[I].im), ...);
    out[K] = {a.re + b.im, a.im - b.re};
    out[N - K] = {a.re - b.im, a.im + b.re};
  }
};

// Adjoint of Dft: out[n] = sum over k of in[k] exp(+2 pi i n k / N).
template <int N>
SLAP_FAST_DEVICE void dft_adjoint(const Complex* in, Complex* out) {
  Complex swapped[N], result[N];
  SLAP_FAST_UNROLL
  for (int k = 0; k < N; ++k) swapped[k] = {in[k].im, in[k].re};
  Dft<N>::template run<1>(swapped, result);
  SLAP_FAST_UNROLL
  for (int n = 0; n < N; ++n) out[n] = {result[n].im, result[n].re};
}

// DFT bins [0, N / 2] of N real values. Does not write the imaginary parts of bin 0 and, for even N, bin N / 2, which
// are 0.
template <int N>
struct RealDft {
  template <int Stride>
  static SLAP_FAST_DEVICE void run(const float* in, Complex* out) {
    if constexpr (N == 1) {
      out[0].re = in[0];
    } else if constexpr (N % 2 == 0) {
      Complex even[N / 4 + 1], odd[N / 4 + 1];
      RealDft<N / 2>::template run<2 * Stride>(in, even);
      RealDft<N / 2>::template run<2 * Stride>(in + Stride, odd);
      out[0].re = even[0].re + odd[0].re;
      out[N / 2].re = even[0].re - odd[0].re;
      if constexpr (N % 4 == 0) out[N / 4] = {even[N / 4].re, -odd[N / 4].re};
      combine(even, odd, out, std::make_integer_sequence<int, (N / 2 - 1) / 2>());
    } else {
      odd_size<Stride>(in, out, std::make_integer_sequence<int, N / 2>());
    }
  }

 private:
  template <int... I>
  static SLAP_FAST_DEVICE void combine(const Complex* even, const Complex* odd, Complex* out,
                                       std::integer_sequence<int, I...>) {
    (butterfly<I + 1, N>(even[I + 1], odd[I + 1], out[I + 1], out[N / 2 - 1 - I]), ...);
    ((out[N / 2 - 1 - I].im = -out[N / 2 - 1 - I].im), ...);
  }

  template <int Stride, int... I>
  static SLAP_FAST_DEVICE void odd_size(const float* in, Complex* out, std::integer_sequence<int, I...> half) {
    const float sum[] = {(in[(I + 1) * Stride] + in[(N - 1 - I) * Stride])...};
    const float difference[] = {(in[(I + 1) * Stride] - in[(N - 1 - I) * Stride])...};
    out[0].re = in[0];
    ((out[0].re += sum[I]), ...);
    (bin<I + 1>(in[0], sum, difference, out, half), ...);
  }

  template <int K, int... I>
  static SLAP_FAST_DEVICE void bin(float a, const float* sum, const float* difference, Complex* out,
                                   std::integer_sequence<int, I...>) {
    float b = 0.0f;
    ((a += Root<(I + 1) * K % N, N>::re * sum[I]), ...);
    ((b -= Root<(I + 1) * K % N, N>::im * difference[I]), ...);
    out[K] = {a, b};
  }
};

// Adjoint of RealDft: out[n * Stride] = Re(sum over k <= N / 2 of in[k] exp(+2 pi i n k / N)).
template <int N>
struct RealDftAdjoint {
  template <int Stride>
  static SLAP_FAST_DEVICE void run(const Complex* in, float* out) {
    if constexpr (N == 1) {
      out[0] = in[0].re;
    } else if constexpr (N % 2 == 0) {
      Complex even[N / 4 + 1], odd[N / 4 + 1];
      even[0] = {in[0].re + in[N / 2].re, 0.0f};
      odd[0] = {in[0].re - in[N / 2].re, 0.0f};
      if constexpr (N % 4 == 0) {
        even[N / 4] = {in[N / 4].re, 0.0f};
        odd[N / 4] = {-in[N / 4].im, 0.0f};
      }
      split(in, even, odd, std::make_integer_sequence<int, (N / 2 - 1) / 2>());
      RealDftAdjoint<N / 2>::template run<2 * Stride>(even, out);
      RealDftAdjoint<N / 2>::template run<2 * Stride>(odd, out + Stride);
    } else {
      odd_size<Stride>(in, out, std::make_integer_sequence<int, N / 2>());
    }
  }

 private:
  template <int... I>
  static SLAP_FAST_DEVICE void split(const Complex* in, Complex* even, Complex* odd, std::integer_sequence<int, I...>) {
    ((even[I + 1] = in[I + 1] + conj(in[N / 2 - 1 - I])), ...);
    ((odd[I + 1] = (in[I + 1] - conj(in[N / 2 - 1 - I])) * Complex{Root<I + 1, N>::re, Root<I + 1, N>::im}), ...);
  }

  template <int Stride, int... I>
  static SLAP_FAST_DEVICE void odd_size(const Complex* in, float* out, std::integer_sequence<int, I...> half) {
    out[0] = in[0].re;
    ((out[0] += in[I + 1].re), ...);
    (pair<Stride, I + 1>(in, out, half), ...);
  }

  template <int Stride, int K, int... I>
  static SLAP_FAST_DEVICE void pair(const Complex* in, float* out, std::integer_sequence<int, I...>) {
    float a = in[0].re, b = 0.0f;
    ((a += Root<(I + 1) * K % N, N>::re * in[I + 1].re), ...);
    ((b += Root<(I + 1) * K % N, N>::im * in[I + 1].im), ...);
    out[K * Stride] = a - b;
    out[(N - K) * Stride] = a + b;
  }
};

}  // namespace slap_fast::cuda
