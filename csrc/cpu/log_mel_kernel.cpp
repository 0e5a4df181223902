// Log-mel of kLanes frames, one per lane: only loads and stores move data across lanes. Compiled once per instruction
// set.
//
// Cost of 16 frames with SLAP's parameters (win_length 400, n_fft 512, 64 mels) in AVX-512 instructions: transpose and
// window 3,000, complex 256-point FFT 6,500, real spectrum and powers 2,000, filters 800, logarithms 1,300, stores 300:
// about 14,000, or 900 per frame.
#include "log_mel_kernel.h"

#include "fft_lanes.h"
#include "lanes.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

struct Scratch {
  float* points;  // [fft.slot_count, 2, kLanes]
  float* powers;  // [n_bins, kLanes]
  float* mels;    // [n_mels + kColumns, kLanes], the last kColumns as padding
  float* legs;    // [max_radix, 2, kLanes]

  Scratch(const LogMelView& view, float* memory)
      : points(memory),
        powers(points + 2 * view.fft.slot_count * kLanes),
        mels(powers + view.n_bins * kLanes),
        legs(mels + (view.n_mels + kColumns) * kLanes) {}
};

std::int64_t scratch_floats(const LogMelView& view) {
  return (2 * view.fft.slot_count + view.n_bins + view.n_mels + kColumns + 2 * view.fft.max_radix) * kLanes;
}

// load_columns() of `count` valid columns, zero-filled.
SLAP_FAST_INLINE void load_rows(const float* const* sources, std::int64_t begin, std::int64_t count,
                                Lanes (&rows)[kColumns]) {
  if (count >= kColumns) return load_columns(sources, begin, rows);
  for (int i = 0; i < kColumns; ++i) {
    rows[i] = Lanes{};
    if (i < count)
      for (int lane = 0; lane < kLanes; ++lane) rows[i][lane] = sources[lane][begin + i];
  }
}

// FFT points covered by a window.
std::int64_t window_points(const LogMelView& view) { return view.paired ? (view.win_length + 1) / 2 : view.win_length; }

// Stores preemphasized and windowed samples to the FFT points; returns the sum of each frame's samples.
Lanes load_windows(const LogMelView& view, const float* const* windows, PrefetchHint prefetch, float* points) {
  const Lanes emphasis = splat(view.preemphasis);
  const float* weights = view.window;
  const std::int32_t* row_of = view.rows;
  const auto store_row = [&](float* row, std::int64_t i, Lanes previous, Lanes x) {
    store(row, fnma(emphasis, previous, x) * weights[i]);
  };
  const auto row = [&](std::int64_t i) { return points + row_of[i] * kLanes; };
  Lanes rows[kColumns] = {}, sums[2] = {};
  std::int64_t begin = 0, fetched = 0;
  for (; begin + kColumns <= view.win_length; begin += kColumns) {
    const Lanes previous = rows[kColumns - 1];
    load_columns(windows, begin, rows);
    float* first = row(begin);
    store_row(first, begin, begin == 0 ? rows[0] : previous, rows[0]);
    if (row_of[begin + kColumns - 1] == row_of[begin] + kColumns - 1)
      for (int i = 1; i < kColumns; ++i) store_row(first + i * kLanes, begin + i, rows[i - 1], rows[i]);
    else
      for (int i = 1; i < kColumns; ++i) store_row(row(begin + i), begin + i, rows[i - 1], rows[i]);
    for (int i = 0; i < kColumns; i += 4) sums[i / 4 % 2] += (rows[i] + rows[i + 1]) + (rows[i + 2] + rows[i + 3]);
    for (; fetched * view.win_length < begin * prefetch.count; fetched += 16)
      __builtin_prefetch(prefetch.samples + fetched, 0, 2);
  }
  if (begin < view.win_length) {
    const Lanes previous = rows[kColumns - 1];
    load_rows(windows, begin, view.win_length - begin, rows);
    store_row(row(begin), begin, begin == 0 ? rows[0] : previous, rows[0]);
    for (std::int64_t i = 1; begin + i < view.win_length; ++i)
      store_row(row(begin + i), begin + i, rows[i - 1], rows[i]);
    for (int i = 0; i < kColumns; ++i) sums[0] += rows[i];
  }
  const std::int64_t read = points_read(view.fft, window_points(view)) * (view.paired ? 2 : 1);
  for (std::int64_t i = view.win_length; i < read; ++i) store(row(i), Lanes{});
  if (!view.paired)
    for (std::int64_t i = 0; i < read; ++i) store(row(i) + kLanes, Lanes{});
  return sums[0] + sums[1];
}

// Runs the first `stages` stages of the FFT of the windows.
void transform_windows(const LogMelView& view, const float* const* windows, PrefetchHint prefetch, std::int64_t stages,
                       const Scratch& scratch) {
  const Lanes mean = load_windows(view, windows, prefetch, scratch.points) / static_cast<float>(view.win_length);
  const std::int64_t points = window_points(view);
  if (!view.dc_weights) return fft_forward(scratch.points, view.fft, points, stages, scratch.legs, Identity{});
  // Preemphasis and window are linear, so the mean's contribution to each point is a precomputed weight. It is
  // subtracted in the first butterflies, whose multiply units are idle.
  const float* weights = view.dc_weights;
  fft_forward(scratch.points, view.fft, points, stages, scratch.legs, [mean, weights](Complex z, std::int64_t point) {
    const float* w = weights + 2 * point;
    return Complex{fnma(mean, splat(w[0]), z.re), fnma(mean, splat(w[1]), z.im)};
  });
}

// Calls visit(k, slot of k, slot of size - k) for the slot pairs that give real frequencies k and size - k.
template <class Visit>
SLAP_FAST_INLINE void for_each_pair(const LogMelView& view, Visit visit) {
  const std::int64_t size = view.fft.size;
  for (std::int64_t k = 1; 2 * k < size; ++k) visit(k, view.fft.slots[k], view.fft.slots[size - k]);
}

struct BinPair {
  Complex low, high;  // spectrum of the real signal: bin k, conjugate of bin size - k
};

SLAP_FAST_INLINE BinPair split(Complex a, Complex b, const float* root) {
  const Lanes re = splat(root[0]), im = splat(root[1]), two = splat(2.0f);
  const Complex even{a.re + b.re, a.im - b.im}, odd{a.im + b.im, b.re - a.re};
  const Complex low{fma(odd.re, re, fnma(odd.im, im, even.re)), fma(odd.re, im, fma(odd.im, re, even.im))};
  return {low, {fms(two, even.re, low.re), fms(two, even.im, low.im)}};
}

SLAP_FAST_INLINE Lanes square(Complex z) { return fma(z.re, z.re, z.im * z.im); }

SLAP_FAST_INLINE Lanes energy(const LogMelView& view, Lanes power) {
  power += view.power_guard;
  return view.magnitude ? square_root(power) : power;
}

void powers_from_spectrum(const LogMelView& view, const Scratch& scratch) {
  const float* points = scratch.points;
  float* powers = scratch.powers;
  if (!view.paired) {
    for (std::int64_t k = 0; k < view.n_bins; ++k)
      store(powers + k * kLanes, energy(view, square(load_slot(points, view.fft.slots[k]))));
    return;
  }
  const std::int64_t size = view.fft.size;
  const Complex zero = load_slot(points, view.fft.slots[0]);
  const Lanes first = 2.0f * (zero.re + zero.im), last = 2.0f * (zero.re - zero.im);
  store(powers, energy(view, first * first));
  store(powers + size * kLanes, energy(view, last * last));
  if (size % 2 == 0 && size > 0)
    store(powers + size / 2 * kLanes, energy(view, 4.0f * square(load_slot(points, view.fft.slots[size / 2]))));
  for_each_pair(view, [&](std::int64_t k, std::int64_t point, std::int64_t other) {
    const BinPair pair = split(load_slot(points, point), load_slot(points, other), view.split + 2 * k);
    store(powers + k * kLanes, energy(view, square(pair.low)));
    store(powers + (size - k) * kLanes, energy(view, square(pair.high)));
  });
}

// Last FFT stage fused with the power spectrum, without storing the FFT. Butterfly f of m gives frequencies f + m q,
// which pair with those of butterfly m - f.
template <int R>
void powers_from_last_stage(const LogMelView& view, const Scratch& scratch) {
  const std::int64_t size = view.fft.size, m = size / R;
  const auto transformed = [&](std::int64_t f, Complex(&z)[R]) {
    for (int q = 0; q < R; ++q) z[q] = load_slot(scratch.points, view.fft.slots[f] + q);
    butterfly(z);
  };
  const auto store_power = [&](std::int64_t k, Complex z) {
    store(scratch.powers + k * kLanes, energy(view, square(z)));
  };
  const auto store_pair = [&](std::int64_t k, Complex a, Complex b) {
    const BinPair pair = split(a, b, view.split + 2 * k);
    store_power(k, pair.low);
    store_power(size - k, pair.high);
  };
  Complex z[R];
  transformed(0, z);
  store_power(0, {2.0f * (z[0].re + z[0].im), Lanes{}});
  store_power(size, {2.0f * (z[0].re - z[0].im), Lanes{}});
  for (int q = 1; 2 * q < R; ++q) store_pair(q * m, z[q], z[R - q]);
  if (R % 2 == 0) store_power(size / 2, z[R / 2] + z[R / 2]);
  if (m % 2 == 0) {
    transformed(m / 2, z);
    for (int q = 0; 2 * q < R - 1; ++q) store_pair(m / 2 + q * m, z[q], z[R - 1 - q]);
    if (R % 2 == 1) store_power(size / 2, z[R / 2] + z[R / 2]);
  }
  for (std::int64_t f = 1; 2 * f < m; ++f) {
    Complex other[R];
    transformed(f, z);
    transformed(m - f, other);
    for (int q = 0; q < R; ++q) store_pair(f + q * m, z[q], other[R - 1 - q]);
  }
}

// Power spectrum of the windows, with the last FFT stage fused if its radix has a specialization.
void compute_powers(const LogMelView& view, const float* const* windows, PrefetchHint prefetch,
                    const Scratch& scratch) {
  const std::int64_t stages = view.fft.stages;
  const std::int64_t last = view.paired && stages > 1 ? view.fft.stage[stages - 1].radix : 0;
  const bool fused = last == 2 || last == 3 || last == 4 || last == 5 || last == 8;
  transform_windows(view, windows, prefetch, fused ? stages - 1 : stages, scratch);
  switch (fused ? last : 0) {
    case 2:
      return powers_from_last_stage<2>(view, scratch);
    case 3:
      return powers_from_last_stage<3>(view, scratch);
    case 4:
      return powers_from_last_stage<4>(view, scratch);
    case 5:
      return powers_from_last_stage<5>(view, scratch);
    case 8:
      return powers_from_last_stage<8>(view, scratch);
    default:
      return powers_from_spectrum(view, scratch);
  }
}

SLAP_FAST_INLINE Lanes row_product(const BandedMatrixView& matrix, std::int64_t row, const float* columns) {
  const std::int32_t begin = matrix.offset[row], end = matrix.offset[row + 1];
  const float* column = columns + static_cast<std::int64_t>(matrix.first[row]) * kLanes;
  Lanes even{}, odd{};
  std::int32_t i = begin;
  for (; i + 1 < end; i += 2, column += 2 * kLanes) {
    even = fma(load(column), splat(matrix.weights[i]), even);
    odd = fma(load(column + kLanes), splat(matrix.weights[i + 1]), odd);
  }
  if (i < end) even = fma(load(column), splat(matrix.weights[i]), even);
  return even + odd;
}

// Stores mel values [begin, begin + count) of the first `frames` lanes.
SLAP_FAST_INLINE void store_mels(const Lanes (&rows)[kColumns], float* const* mels, std::int64_t begin,
                                 std::int64_t count, std::int64_t frames, MelBlocks blocks) {
  const std::int64_t within = begin % blocks.block;
  if (frames == kLanes && count == kColumns && within + kColumns <= blocks.block)
    return store_columns(rows, mels, begin / blocks.block * blocks.block_stride + within);
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t lane = 0; lane < frames; ++lane)
      mels[lane][(begin + i) / blocks.block * blocks.block_stride + (begin + i) % blocks.block] = rows[i][lane];
}

void forward(const LogMelView& view, const float* const* windows, float* const* mels, std::int64_t count,
             MelBlocks blocks, PrefetchHint prefetch, float* memory) {
  const Scratch scratch(view, memory);
  compute_powers(view, windows, prefetch, scratch);
  const Lanes floor = splat(view.log_floor), scale = splat(view.log_scale), shift = splat(view.log_shift);
  for (std::int64_t mel = 0; mel < view.n_mels; ++mel)
    store(scratch.mels + mel * kLanes, row_product(view.mel_of_bins, mel, scratch.powers));
  // kColumns independent logarithms at a time hide latency.
  for (std::int64_t begin = 0; begin < view.n_mels; begin += kColumns) {
    const std::int64_t filters = view.n_mels - begin < kColumns ? view.n_mels - begin : kColumns;
    Lanes rows[kColumns];
    for (int i = 0; i < kColumns; ++i) rows[i] = max(load(scratch.mels + (begin + i) * kLanes), floor) + view.log_guard;
    if (view.logarithm)
      for (int i = 0; i < kColumns; ++i) rows[i] = logarithm(rows[i]);
    for (int i = 0; i < kColumns; ++i) rows[i] = fma(rows[i], scale, shift);
    store_mels(rows, mels, begin, filters, count, blocks);
  }
}

// Writes the gradients with respect to the filter outputs to scratch.mels.
void mel_gradients(const LogMelView& view, const float* const* grads, const Scratch& scratch) {
  for (std::int64_t begin = 0; begin < view.n_mels; begin += kColumns) {
    const std::int64_t filters = view.n_mels - begin < kColumns ? view.n_mels - begin : kColumns;
    Lanes rows[kColumns];
    load_rows(grads, begin, filters, rows);
    for (std::int64_t i = 0; i < filters; ++i) {
      const Lanes mel = row_product(view.mel_of_bins, begin + i, scratch.powers);
      const Lanes log_grad = rows[i] * view.log_scale;
      const Lanes grad = view.logarithm ? log_grad / (mel + view.log_guard) : log_grad;
      store(scratch.mels + (begin + i) * kLanes, select(mel > view.log_floor, grad, Lanes{}));
    }
  }
}

// Factor from a spectral value to its gradient.
SLAP_FAST_INLINE Lanes spectrum_scale(const LogMelView& view, const Scratch& scratch, std::int64_t k) {
  const Lanes grad = row_product(view.bin_of_mels, k, scratch.mels);
  if (!view.magnitude) return 2.0f * grad;
  const Lanes root = load(scratch.powers + k * kLanes);
  return select(root > 0.0f, grad / root, Lanes{});  // sqrt has no derivative at 0
}

SLAP_FAST_INLINE Complex scaled(Complex z, Lanes factor) { return {z.re * factor, z.im * factor}; }

void spectrum_gradients(const LogMelView& view, const Scratch& scratch) {
  float* points = scratch.points;
  const std::int32_t* slots = view.fft.slots;
  const std::int64_t size = view.fft.size;
  if (!view.paired) {
    for (std::int64_t k = 0; k < size; ++k)
      store_slot(points, slots[k],
                 k < view.n_bins ? scaled(load_slot(points, slots[k]), spectrum_scale(view, scratch, k)) : Complex{});
    return;
  }
  const Complex zero = load_slot(points, slots[0]);
  const Lanes first = 4.0f * (zero.re + zero.im) * spectrum_scale(view, scratch, 0);
  const Lanes last = 4.0f * (zero.re - zero.im) * spectrum_scale(view, scratch, size);
  store_slot(points, slots[0], {first + last, first - last});
  if (size % 2 == 0 && size > 0)
    store_slot(points, slots[size / 2],
               scaled(load_slot(points, slots[size / 2]), 4.0f * spectrum_scale(view, scratch, size / 2)));
  for_each_pair(view, [&](std::int64_t k, std::int64_t point, std::int64_t other) {
    const float* root = view.split + 2 * k;
    const BinPair pair = split(load_slot(points, point), load_slot(points, other), root);
    const Complex low = scaled(pair.low, spectrum_scale(view, scratch, k));
    const Complex high = scaled(pair.high, spectrum_scale(view, scratch, size - k));
    const Complex even = low + high, rotated = low - high;
    // i * conj(root) * rotated
    const Lanes re = splat(root[0]), im = splat(root[1]);
    const Complex odd{fms(rotated.re, im, rotated.im * re), fma(rotated.re, re, rotated.im * im)};
    const Complex b = even - odd;
    store_slot(points, point, even + odd);
    store_slot(points, other, {b.re, -b.im});
  });
}

// Transpose of load_windows: gradients of the samples, one row per frame.
void store_window_gradients(const LogMelView& view, float* points, float* grad_windows) {
  const auto row = [&](std::int64_t i) { return points + view.rows[i] * kLanes; };
  Lanes sum{};
  for (std::int64_t i = 0; i < view.win_length; ++i) {
    const Lanes grad = load(row(i)) * view.window[i];
    store(row(i), grad);
    sum += grad;
  }
  const Lanes emphasis = splat(view.preemphasis);
  const Lanes mean_grad = view.dc_weights ? sum * (-view.dc_factor / static_cast<float>(view.win_length)) : Lanes{};
  const std::int64_t width = (view.win_length + 7) / 8 * 8;
  float* targets[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) targets[lane] = grad_windows + lane * width;
  for (std::int64_t begin = 0; begin < view.win_length; begin += kColumns) {
    Lanes rows[kColumns] = {};
    for (std::int64_t i = 0; i < kColumns && begin + i < view.win_length; ++i) {
      const Lanes grad = load(row(begin + i));
      const Lanes following = begin + i + 1 < view.win_length ? load(row(begin + i + 1)) : Lanes{};
      rows[i] = fnma(emphasis, following, grad) + mean_grad;
      if (begin + i == 0) rows[i] = fnma(emphasis, grad, rows[i]);
    }
    store_columns(rows, targets, begin);
  }
}

void backward(const LogMelView& view, const float* const* windows, const float* const* grads, float* grad_windows,
              float* memory) {
  const Scratch scratch(view, memory);
  transform_windows(view, windows, {nullptr, 0}, view.fft.stages, scratch);
  powers_from_spectrum(view, scratch);
  mel_gradients(view, grads, scratch);
  spectrum_gradients(view, scratch);
  fft_backward(scratch.points, view.fft, window_points(view), scratch.legs);
  store_window_gradients(view, scratch.points, grad_windows);
}

void scale_float(const float* in, std::int64_t count, float scale, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = in[i] * scale;
}

void scale_int16(const std::int16_t* in, std::int64_t count, float scale, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]) * scale;
}

void emphasize(const float* in, std::int64_t count, float coefficient, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = in[i] - coefficient * in[i - 1];
}

void add(const float* in, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] += in[i];
}

}  // namespace

LogMelKernel log_mel_kernel() {
  return {kLanes, scratch_floats, forward, backward, scale_float, scale_int16, emphasize, add};
}

}  // namespace slap_fast::SLAP_FAST_ISA
