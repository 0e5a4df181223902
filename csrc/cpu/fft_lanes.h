// In-place complex FFT of kLanes signals, one per lane.
//
// A slot is a vector of real parts followed by one of imaginary parts. Point n is in slot n + n / block. The forward
// transform (decimation in frequency) leaves frequency k in slots[k]. The backward one is its transpose: from that
// order to natural order, with exp(+2 pi i), unscaled. Twiddles are broadcast memory operands and need no registers. A
// radix-R butterfly reads and writes R points, its legs.
#pragma once

#include "fft_plan_view.h"
#include "lanes.h"

namespace slap_fast::SLAP_FAST_ISA {

struct Complex {
  Lanes re, im;
};

SLAP_FAST_INLINE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
SLAP_FAST_INLINE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }

SLAP_FAST_INLINE Complex times(Complex a, const float* w) {
  const Lanes re = splat(w[0]), im = splat(w[1]);
  return {fms(a.re, re, a.im * im), fma(a.re, im, a.im * re)};
}

// R-point DFT with exp(-2 pi i), natural order.
template <int R>
SLAP_FAST_INLINE void butterfly(Complex (&z)[R]);

template <>
SLAP_FAST_INLINE void butterfly<2>(Complex (&z)[2]) {
  const Complex a = z[0];
  z[0] = a + z[1];
  z[1] = a - z[1];
}

template <>
SLAP_FAST_INLINE void butterfly<3>(Complex (&z)[3]) {
  const Lanes sine = splat(0.86602540378f);
  const Complex sum = z[1] + z[2], difference = z[1] - z[2];
  const Complex middle{fnma(sum.re, splat(0.5f), z[0].re), fnma(sum.im, splat(0.5f), z[0].im)};
  z[0] = z[0] + sum;
  z[1] = {fma(difference.im, sine, middle.re), fnma(difference.re, sine, middle.im)};
  z[2] = {fnma(difference.im, sine, middle.re), fma(difference.re, sine, middle.im)};
}

template <>
SLAP_FAST_INLINE void butterfly<4>(Complex (&z)[4]) {
  const Complex a = z[0] + z[2], b = z[0] - z[2], c = z[1] + z[3], d = z[1] - z[3];
  z[0] = a + c;
  z[1] = {b.re + d.im, b.im - d.re};
  z[2] = a - c;
  z[3] = {b.re - d.im, b.im + d.re};
}

template <>
SLAP_FAST_INLINE void butterfly<5>(Complex (&z)[5]) {
  const Lanes c1 = splat(0.30901699437f), c2 = splat(-0.80901699437f);
  const Lanes s1 = splat(0.95105651629f), s2 = splat(0.58778525229f);
  const Complex a = z[1] + z[4], b = z[2] + z[3], c = z[1] - z[4], d = z[2] - z[3];
  const Complex p{fma(b.re, c2, fma(a.re, c1, z[0].re)), fma(b.im, c2, fma(a.im, c1, z[0].im))};
  const Complex q{fma(b.re, c1, fma(a.re, c2, z[0].re)), fma(b.im, c1, fma(a.im, c2, z[0].im))};
  const Complex u{fma(d.re, s2, c.re * s1), fma(d.im, s2, c.im * s1)};
  const Complex v{fnma(d.re, s1, c.re * s2), fnma(d.im, s1, c.im * s2)};
  z[0] = z[0] + a + b;
  z[1] = {p.re + u.im, p.im - u.re};
  z[2] = {q.re + v.im, q.im - v.re};
  z[3] = {q.re - v.im, q.im + v.re};
  z[4] = {p.re - u.im, p.im + u.re};
}

// 8-point DFT whose inputs from `legs` (6 to 8) on are zero. The factor sqrt(1/2) of the odd half is applied in the
// last additions, as FMAs.
template <int legs>
SLAP_FAST_INLINE void padded_butterfly_8(Complex (&z)[8]) {
  Complex even[4] = {z[0] + z[4], z[1] + z[5], z[2], z[3]};
  const Complex p = z[0] - z[4], q = z[1] - z[5];
  Complex r = z[2], s = z[3];
  if constexpr (legs > 6) {
    even[2] = z[2] + z[6];
    r = z[2] - z[6];
  }
  if constexpr (legs > 7) {
    even[3] = z[3] + z[7];
    s = z[3] - z[7];
  }
  butterfly(even);
  const Complex a{p.re + r.im, p.im - r.re}, b{p.re - r.im, p.im + r.re};
  const Complex u{q.re + q.im, q.im - q.re}, v{s.im - s.re, s.re + s.im};
  const Complex c{u.re + v.re, u.im - v.im}, d{u.re - v.re, u.im + v.im};
  const Lanes half = splat(0.70710678119f);
  for (int k = 0; k < 4; ++k) z[2 * k] = even[k];
  z[1] = {fma(half, c.re, a.re), fma(half, c.im, a.im)};
  z[3] = {fma(half, d.im, b.re), fnma(half, d.re, b.im)};
  z[5] = {fnma(half, c.re, a.re), fnma(half, c.im, a.im)};
  z[7] = {fnma(half, d.im, b.re), fma(half, d.re, b.im)};
}

template <>
SLAP_FAST_INLINE void butterfly<8>(Complex (&z)[8]) {
  padded_butterfly_8<8>(z);
}

SLAP_FAST_INLINE Complex swap_re_im(Complex z) { return {z.im, z.re}; }

SLAP_FAST_INLINE Complex load_slot(const float* data, std::int64_t slot) {
  return {load(data + slot * 2 * kLanes), load(data + (slot * 2 + 1) * kLanes)};
}

SLAP_FAST_INLINE void store_slot(float* data, std::int64_t slot, Complex z) {
  store(data + slot * 2 * kLanes, z.re);
  store(data + (slot * 2 + 1) * kLanes, z.im);
}

struct Identity {
  SLAP_FAST_INLINE Complex operator()(Complex stored, std::int64_t) const { return stored; }
};

// One butterfly of a block, at point j. Legs from `legs` on are zero and not read.
template <int R, int legs, class Source>
SLAP_FAST_INLINE void forward_butterfly(float* data, const FftStageView& stage, std::int64_t leg, std::int64_t j,
                                        Source source) {
  const float* twiddles = stage.twiddles + j * (R - 1) * 2;
  Complex z[R];
  for (int q = 0; q < legs; ++q) z[q] = source(load_slot(data, j + q * leg), j + q * stage.step);
  if constexpr (R == 8)
    padded_butterfly_8<legs>(z);
  else
    butterfly(z);
  store_slot(data, j, z[0]);
  if (j == 0)
    for (int q = 1; q < R; ++q) store_slot(data, q * leg, z[q]);
  else
    for (int q = 1; q < R; ++q) store_slot(data, j + q * leg, times(z[q], twiddles + (q - 1) * 2));
}

// One block of a stage: butterflies start at points [0, step), their legs are `leg` slots apart. Inputs are read as
// source(stored, point).
template <int R, class Source>
inline void forward_block(float* data, const FftStageView& stage, std::int64_t leg, Source source) {
  for (std::int64_t j = 0; j < stage.step; ++j) forward_butterfly<R, R>(data, stage, leg, j, source);
}

// A radix-8 block whose points from `points` on are zero, which is beyond the first six legs. Zeros are not read.
template <class Source>
inline void forward_padded_block(float* data, const FftStageView& stage, std::int64_t leg, std::int64_t points,
                                 Source source) {
  std::int64_t j = 0;
  for (; j + 7 * stage.step < points; ++j) forward_butterfly<8, 8>(data, stage, leg, j, source);
  for (; j < stage.step && j + 6 * stage.step < points; ++j) forward_butterfly<8, 7>(data, stage, leg, j, source);
  for (; j < stage.step; ++j) forward_butterfly<8, 6>(data, stage, leg, j, source);
}

// Transpose of forward_block: conjugate twiddles, then the conjugate butterfly, both by swapping real and imaginary
// parts. Points from `points` on are not written.
template <int R>
inline void backward_block(float* data, const FftStageView& stage, std::int64_t leg, std::int64_t points) {
  for (std::int64_t j = 0; j < stage.step; ++j) {
    const float* twiddles = stage.twiddles + j * (R - 1) * 2;
    Complex z[R];
    for (int q = 0; q < R; ++q) z[q] = swap_re_im(load_slot(data, j + q * leg));
    if (j != 0)
      for (int q = 1; q < R; ++q) z[q] = times(z[q], twiddles + (q - 1) * 2);
    butterfly(z);
    for (int q = 0; q < R; ++q)
      if (j + q * stage.step < points) store_slot(data, j + q * leg, swap_re_im(z[q]));
  }
}

// Naive DFT for a prime radix without a specialization. `legs` is scratch for `radix` points.
template <bool forward, class Source>
inline void generic_block(float* data, const FftStageView& stage, std::int64_t leg, float* legs, Source source) {
  const std::int64_t radix = stage.radix;
  for (std::int64_t j = 0; j < stage.step; ++j) {
    const float* twiddles = stage.twiddles + j * (radix - 1) * 2;
    for (std::int64_t m = 0; m < radix; ++m) {
      Complex z = source(load_slot(data, j + m * leg), j + m * stage.step);
      if (!forward) z = m == 0 ? swap_re_im(z) : times(swap_re_im(z), twiddles + (m - 1) * 2);
      store_slot(legs, m, z);
    }
    for (std::int64_t q = 0; q < radix; ++q) {
      Complex sum{};
      for (std::int64_t m = 0, root = 0; m < radix; ++m) {
        sum = sum + times(load_slot(legs, m), stage.roots + root * 2);
        root += q;
        if (root >= radix) root -= radix;
      }
      if (forward && q > 0) sum = times(sum, twiddles + (q - 1) * 2);
      store_slot(data, j + q * leg, forward ? sum : swap_re_im(sum));
    }
  }
}

template <class Source>
inline void dispatch_forward_block(float* data, const FftStageView& stage, std::int64_t leg, float* legs,
                                   Source source) {
  switch (stage.radix) {
    case 2:
      return forward_block<2>(data, stage, leg, source);
    case 3:
      return forward_block<3>(data, stage, leg, source);
    case 4:
      return forward_block<4>(data, stage, leg, source);
    case 5:
      return forward_block<5>(data, stage, leg, source);
    case 8:
      return forward_block<8>(data, stage, leg, source);
    default:
      return generic_block<true>(data, stage, leg, legs, source);
  }
}

inline void dispatch_backward_block(float* data, const FftStageView& stage, std::int64_t leg, std::int64_t points,
                                    float* legs) {
  switch (stage.radix) {
    case 2:
      return backward_block<2>(data, stage, leg, points);
    case 3:
      return backward_block<3>(data, stage, leg, points);
    case 4:
      return backward_block<4>(data, stage, leg, points);
    case 5:
      return backward_block<5>(data, stage, leg, points);
    case 8:
      return backward_block<8>(data, stage, leg, points);
    default:
      return generic_block<false>(data, stage, leg, legs, Identity{});
  }
}

// Calls visit(part) for each independent transform of stage i within one leg of the first stage.
template <class Visit>
SLAP_FAST_INLINE void for_each_subtransform(float* data, const FftView& fft, std::int64_t i, Visit visit) {
  const std::int64_t points = fft.stage[i].radix * fft.stage[i].step;
  for (std::int64_t first = 0; first < fft.block; first += points) visit(data + first * 2 * kLanes);
}

// Calls visit(leg) for each independent transform left by the first stage, so that it completes while in cache.
template <class Visit>
SLAP_FAST_INLINE void for_each_leg(float* data, const FftView& fft, Visit visit) {
  for (std::int64_t q = 0; q < fft.stage[0].radix; ++q) visit(data + q * (fft.block + 1) * 2 * kLanes);
}

// Points read by the first stage if points from `points` on are zero.
inline std::int64_t points_read(const FftView& fft, std::int64_t points) {
  if (fft.stages == 0 || fft.stage[0].radix != 8) return fft.size;
  return points > 6 * fft.block ? points : 6 * fft.block;
}

// The first `stages` stages of the forward transform, with zeros from point `points` on.
template <class Source>
inline void fft_forward(float* data, const FftView& fft, std::int64_t points, std::int64_t stages, float* legs,
                        Source source) {
  if (fft.stages == 0) store_slot(data, 0, source(load_slot(data, 0), 0));
  if (stages == 0) return;
  if (fft.stage[0].radix == 8)
    forward_padded_block(data, fft.stage[0], fft.block + 1, points, source);
  else
    dispatch_forward_block(data, fft.stage[0], fft.block + 1, legs, source);
  for_each_leg(data, fft, [&](float* leg) {
    for (std::int64_t i = 1; i < stages; ++i)
      for_each_subtransform(leg, fft, i, [&](float* part) {
        dispatch_forward_block(part, fft.stage[i], fft.stage[i].step, legs, Identity{});
      });
  });
}

// The backward transform; only the first `points` points are valid.
inline void fft_backward(float* data, const FftView& fft, std::int64_t points, float* legs) {
  if (fft.stages == 0) return;
  for_each_leg(data, fft, [&](float* leg) {
    for (std::int64_t i = fft.stages - 1; i >= 1; --i)
      for_each_subtransform(leg, fft, i, [&](float* part) {
        dispatch_backward_block(part, fft.stage[i], fft.stage[i].step, fft.size, legs);
      });
  });
  dispatch_backward_block(data, fft.stage[0], fft.block + 1, points, legs);
}

}  // namespace slap_fast::SLAP_FAST_ISA
