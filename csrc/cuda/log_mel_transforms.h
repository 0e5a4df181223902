// Two-step DFT of a block's frames (real columns, then complex rows) and its adjoint.
//
// Each function is one thread's part of a phase and reads nothing that another thread writes in that phase. Thread t
// processes frame t % frames and every (threads / frames)-th task from t / frames on. With 32 frames per block, a warp
// executes one task, so table reads are broadcasts.
#pragma once

#include <cmath>

#include "dft.h"
#include "log_mel_plan.h"

namespace slap_fast::cuda {

struct LogMelBlock {
  const LogMelSizes& sizes;
  const LogMelTables& tables;
  float* shared;
};

// sqrt.approx has a maximum error of 2 ulp; a correctly rounded root is a subroutine call per bin.
SLAP_FAST_DEVICE float square_root(float x) {
#if defined(__CUDA_ARCH__)
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
#else
  return std::sqrt(x);
#endif
}

SLAP_FAST_DEVICE float reciprocal_root(float x) {
#if defined(__CUDA_ARCH__)
  return rsqrtf(x);
#else
  return 1.0f / std::sqrt(x);
#endif
}

SLAP_FAST_DEVICE float guarded_power(const LogMelSizes& sizes, float re, float im) {
  return re * re + im * im + sizes.power_guard;
}

SLAP_FAST_DEVICE float energy(const LogMelSizes& sizes, float re, float im) {
  const float power = guarded_power(sizes, re, im);
  return sizes.magnitude ? square_root(power) : power;
}

// Factor from a bin's spectrum to its gradient; 0 at magnitude 0.
SLAP_FAST_DEVICE float spectrum_slope(const LogMelSizes& sizes, float re, float im, float grad_energy) {
  if (!sizes.magnitude) return 2.0f * grad_energy;
  const float power = guarded_power(sizes, re, im);
  return power == 0.0f ? 0.0f : grad_energy * reciprocal_root(power);
}

// Stores the energies of `Count` bins, `Stride` apart; a single test whether they are magnitudes.
template <int Count, int Stride>
SLAP_FAST_DEVICE void store_energies(const LogMelSizes& sizes, const Complex* spectrum, float* words) {
  float values[Count];
  SLAP_FAST_UNROLL
  for (int k = 0; k < Count; ++k) values[k] = guarded_power(sizes, spectrum[k].re, spectrum[k].im);
  if (sizes.magnitude) {
    SLAP_FAST_UNROLL
    for (int k = 0; k < Count; ++k) values[k] = square_root(values[k]);
  }
  SLAP_FAST_UNROLL
  for (int k = 0; k < Count; ++k) words[k * Stride] = values[k];
}

// Stores the real and imaginary parts of `Count` bins.
template <int Count, int Stride>
SLAP_FAST_DEVICE void store_bins(const Complex* spectrum, float* real, float* imag) {
  SLAP_FAST_UNROLL
  for (int k = 0; k < Count; ++k) {
    real[k * Stride] = spectrum[k].re;
    imag[k * Stride] = spectrum[k].im;
  }
}

// Reads the gradients of mel values from the samples' section.
SLAP_FAST_DEVICE float grad_energy(const LogMelBlock& block, int frame, int bin) {
  const LogMelSizes& sizes = block.sizes;
  const float* grad_mels = block.shared + sizes.samples + frame * sizes.mel_pitch;
  float sum = 0.0f;
  SLAP_FAST_NO_UNROLL  // inlined once per bin of a row
      for (int i = block.tables.bin_begin[bin]; i < block.tables.bin_begin[bin + 1]; ++i) {
    const BinWeight entry = block.tables.bin_weights[i];
    sum += entry.weight * grad_mels[entry.mel];
  }
  return sum;
}

// Preemphasized, mean-free and windowed sample of a frame. `first`: the frame's own first sample.
SLAP_FAST_DEVICE float windowed(const LogMelBlock& block, int frame, float mean, Tap tap, bool first) {
  const LogMelSizes& sizes = block.sizes;
  const float x =
      first ? block.shared[sizes.head + frame] : block.shared[sizes.samples + frame * sizes.pitch + tap.word];
  return (x - mean) * tap.window;
}

SLAP_FAST_DEVICE float frame_mean(const LogMelBlock& block, int frame) {
  return block.sizes.remove_dc_offset ? block.shared[block.sizes.mean + frame] : 0.0f;
}

// In-place transform in registers for n_fft = Steps * Columns, both even. A column's Steps real samples become words c
// * Columns + column, with c = 0 for row 0 (real), 1 for row Steps / 2 (real), and 2 r, 2 r + 1 for row r. A row's
// spectrum and powers overwrite the row's words. The two real rows share one task.
template <int Steps, int Columns, int Frames>
struct RegisterTransform {
  static constexpr int kSteps = Steps;
  static constexpr int kColumns = Columns;
  static constexpr int kFrames = Frames;
  static constexpr int kThreads = Frames * Steps / 2;
  static constexpr int kBlocks = 2;  // minimum blocks per SM
  static constexpr bool kInRegisters = true;
  static constexpr int kSlots = kThreads / Frames;

  static SLAP_FAST_DEVICE int frames(const LogMelSizes&) { return Frames; }
  static SLAP_FAST_DEVICE int slots(const LogMelSizes&) { return kSlots; }

  static SLAP_FAST_DEVICE void columns(const LogMelBlock& block, int t) {
    const int frame = t % Frames;
    const float mean = frame_mean(block, frame);
    float* words = block.shared + block.sizes.spectrum + frame;
    for (int column = t / Frames; column < Columns; column += kSlots) {
      const Tap* taps = block.tables.taps + column * Steps;
      float x[Steps];
      SLAP_FAST_UNROLL
      for (int step = 0; step < Steps; ++step) {
        const bool first = step == 0 && column == 0;
        x[step] = step * Columns < block.sizes.win_length ? windowed(block, frame, mean, taps[step], first) : 0.0f;
      }
      Complex z[Steps / 2 + 1];
      RealDft<Steps>::template run<1>(x, z);
      words[column * Frames] = z[0].re;
      words[(Columns + column) * Frames] = z[Steps / 2].re;
      SLAP_FAST_UNROLL
      for (int row = 1; row < Steps / 2; ++row) {
        words[(2 * row * Columns + column) * Frames] = z[row].re;
        words[((2 * row + 1) * Columns + column) * Frames] = z[row].im;
      }
    }
  }

  // KeepSpectrum: stores complex bins, for the backward pass; otherwise their energies.
  template <bool KeepSpectrum>
  static SLAP_FAST_DEVICE void rows(const LogMelBlock& block, int t) {
    float* words = block.shared + block.sizes.spectrum + t % Frames;
    const int row = t / Frames;
    if (row == 0) {
      real_rows<KeepSpectrum>(block, words);
      return;
    }
    float* real = words + 2 * row * Columns * Frames;
    float* imag = real + Columns * Frames;
    const Complex* twiddles = block.tables.roots + row * Columns;
    Complex z[Columns], spectrum[Columns];
    z[0] = {real[0], imag[0]};
    SLAP_FAST_UNROLL
    for (int j = 1; j < Columns; ++j) z[j] = Complex{real[j * Frames], imag[j * Frames]} * twiddles[j];
    Dft<Columns>::template run<1>(z, spectrum);
    if constexpr (KeepSpectrum)
      store_bins<Columns, Frames>(spectrum, real, imag);
    else
      store_energies<Columns, Frames>(block.sizes, spectrum, real);
  }

  static SLAP_FAST_DEVICE void spectrum_gradient(const LogMelBlock&, int) {}

  static SLAP_FAST_DEVICE void rows_adjoint(const LogMelBlock& block, int t) {
    const int frame = t % Frames, row = t / Frames;
    float* words = block.shared + block.sizes.spectrum + frame;
    if (row == 0) {
      real_rows_adjoint(block, frame, words);
      return;
    }
    float* real = words + 2 * row * Columns * Frames;
    float* imag = real + Columns * Frames;
    const Complex* twiddles = block.tables.roots + row * Columns;
    Complex grad[Columns], z[Columns];
    SLAP_FAST_UNROLL
    for (int k = 0; k < Columns; ++k) {
      const int bin = row + Steps * k;
      const bool mirrored = k >= Columns / 2;
      grad[k] = bin_gradient(block, frame, mirrored ? Steps * Columns - bin : bin, real[k * Frames], imag[k * Frames]);
    }
    dft_adjoint<Columns>(grad, z);
    SLAP_FAST_UNROLL
    for (int j = 0; j < Columns; ++j) {
      const Complex value = j == 0 ? z[0] : z[j] * conj(twiddles[j]);
      real[j * Frames] = value.re;
      imag[j * Frames] = value.im;
    }
  }

  // Stores the gradient of sample n (before windowing) in word n.
  static SLAP_FAST_DEVICE void columns_adjoint(const LogMelBlock& block, int t) {
    float* words = block.shared + block.sizes.spectrum + t % Frames;
    for (int column = t / Frames; column < Columns; column += kSlots) {
      const Tap* taps = block.tables.taps + column * Steps;
      Complex z[Steps / 2 + 1];
      z[0] = {words[column * Frames], 0.0f};
      z[Steps / 2] = {words[(Columns + column) * Frames], 0.0f};
      SLAP_FAST_UNROLL
      for (int row = 1; row < Steps / 2; ++row)
        z[row] = {words[(2 * row * Columns + column) * Frames], words[((2 * row + 1) * Columns + column) * Frames]};
      float x[Steps];
      RealDftAdjoint<Steps>::template run<1>(z, x);
      SLAP_FAST_UNROLL
      for (int step = 0; step < Steps; ++step) words[(step * Columns + column) * Frames] = x[step] * taps[step].window;
    }
  }

  struct BinWords {
    int real, imag;
  };
  static BinWords bin_words(const LogMelSizes&, int bin) {
    int row = bin % Steps, k = bin / Steps;
    if (row == 0) return {k * Frames, (k % (Columns / 2) ? Columns / 2 + k : k) * Frames};
    if (row == Steps / 2) return {(Columns + k) * Frames, (Columns + Columns / 2 + k) * Frames};
    if (row > Steps / 2) {
      row = Steps - row;
      k = Columns - 1 - k;
    }
    return {(2 * row * Columns + k) * Frames, ((2 * row + 1) * Columns + k) * Frames};
  }
  static int spectrum_words(const LogMelSizes&) { return Steps * Columns; }
  static SLAP_FAST_DEVICE int gradient_word(const LogMelSizes&) { return 0; }

 private:
  static SLAP_FAST_DEVICE Complex bin_gradient(const LogMelBlock& block, int frame, int bin, float re, float im) {
    const float slope = spectrum_slope(block.sizes, re, im, grad_energy(block, frame, bin));
    return {slope * re, slope * im};
  }

  template <bool KeepSpectrum>
  static SLAP_FAST_DEVICE void real_rows(const LogMelBlock& block, float* words) {
    constexpr int half = Columns / 2;
    float x[Columns];
    Complex spectrum[half + 1];
    SLAP_FAST_UNROLL
    for (int j = 0; j < Columns; ++j) x[j] = words[j * Frames];
    RealDft<Columns>::template run<1>(x, spectrum);
    spectrum[0].im = spectrum[half].im = 0.0f;
    if constexpr (KeepSpectrum) {
      words[0] = spectrum[0].re;
      words[half * Frames] = spectrum[half].re;
      store_bins<half - 1, Frames>(spectrum + 1, words + Frames, words + (half + 1) * Frames);
    } else {
      store_energies<half + 1, Frames>(block.sizes, spectrum, words);
    }

    float* middle = words + Columns * Frames;
    const Complex* twiddles = block.tables.roots + half_row();
    Complex z[Columns], odd[Columns];
    SLAP_FAST_UNROLL
    for (int j = 0; j < Columns; ++j) {
      const Complex twiddle = twiddles[j];
      const float value = middle[j * Frames];
      z[j] = {value * twiddle.re, value * twiddle.im};
    }
    Dft<Columns>::template run<1>(z, odd);
    if constexpr (KeepSpectrum)
      store_bins<half, Frames>(odd, middle, middle + half * Frames);
    else
      store_energies<half, Frames>(block.sizes, odd, middle);
  }

  static SLAP_FAST_DEVICE void real_rows_adjoint(const LogMelBlock& block, int frame, float* words) {
    constexpr int half = Columns / 2;
    Complex grad[half + 1];
    SLAP_FAST_UNROLL
    for (int k = 0; k <= half; ++k)
      grad[k] = bin_gradient(block, frame, Steps * k, words[k * Frames], k % half ? words[(half + k) * Frames] : 0.0f);
    float x[Columns];
    RealDftAdjoint<Columns>::template run<1>(grad, x);
    SLAP_FAST_UNROLL
    for (int j = 0; j < Columns; ++j) words[j * Frames] = x[j];

    float* middle = words + Columns * Frames;
    const Complex* twiddles = block.tables.roots + half_row();
    Complex odd[Columns], z[Columns];
    SLAP_FAST_UNROLL
    for (int k = 0; k < Columns; ++k)
      odd[k] = k < half
                   ? bin_gradient(block, frame, Steps / 2 + Steps * k, middle[k * Frames], middle[(half + k) * Frames])
                   : Complex{0.0f, 0.0f};
    dft_adjoint<Columns>(odd, z);
    SLAP_FAST_UNROLL
    for (int j = 0; j < Columns; ++j) {
      const Complex twiddle = twiddles[j];
      middle[j * Frames] = z[j].re * twiddle.re + z[j].im * twiddle.im;
    }
  }

  static constexpr SLAP_FAST_DEVICE int half_row() { return Steps / 2 * Columns; }
};

// Any n_fft = steps * columns, with a naive DFT in both steps: n_fft * (steps + columns) operations per frame. Reads
// complex columns [rows, columns] and writes the spectrum behind them; sample gradients overwrite the spectrum.
struct LoopTransform {
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 1;
  static constexpr bool kInRegisters = false;

  static SLAP_FAST_DEVICE int frames(const LogMelSizes& sizes) { return sizes.frames; }
  static SLAP_FAST_DEVICE int slots(const LogMelSizes& sizes) { return kThreads / sizes.frames; }

  static SLAP_FAST_DEVICE void columns(const LogMelBlock& block, int t) {
    const LogMelSizes& sizes = block.sizes;
    const int frame = t % sizes.frames;
    const float mean = frame_mean(block, frame);
    const int tasks = (sizes.steps / 2 + 1) * sizes.columns;
    for (int task = t / sizes.frames; task < tasks; task += slots(sizes)) {
      const int row = task / sizes.columns, column = task % sizes.columns;
      const Tap* taps = block.tables.taps + column * sizes.steps;
      Complex sum{0.0f, 0.0f};
      for (int step = 0, root = 0; step < sizes.steps && step * sizes.columns < sizes.win_length; ++step) {
        const float x = windowed(block, frame, mean, taps[step], step == 0 && column == 0);
        const Complex w = block.tables.roots[root];
        sum = {sum.re + x * w.re, sum.im + x * w.im};
        root = advance_root(root, row * sizes.columns, sizes.n_fft);
      }
      store(block, task, frame, sum * block.tables.roots[row * column]);
    }
  }

  template <bool KeepSpectrum>
  static SLAP_FAST_DEVICE void rows(const LogMelBlock& block, int t) {
    const LogMelSizes& sizes = block.sizes;
    const int frame = t % sizes.frames;
    const int first = (sizes.steps / 2 + 1) * sizes.columns;
    for (int bin = t / sizes.frames; bin <= sizes.n_fft / 2; bin += slots(sizes)) {
      const bool mirrored = bin % sizes.steps > sizes.steps / 2;
      const int source = mirrored ? sizes.n_fft - bin : bin;
      const int row = source % sizes.steps, turn = source / sizes.steps * sizes.steps;
      Complex sum{0.0f, 0.0f};
      for (int j = 0, root = 0; j < sizes.columns; ++j) {
        sum = sum + load(block, row * sizes.columns + j, frame) * block.tables.roots[root];
        root = advance_root(root, turn, sizes.n_fft);
      }
      if (KeepSpectrum) {
        store(block, first + bin, frame, mirrored ? conj(sum) : sum);
      } else {
        const bool real = 2 * bin % sizes.n_fft == 0;
        block.shared[sizes.spectrum + 2 * (first + bin) * sizes.frames + frame] =
            energy(sizes, sum.re, real ? 0.0f : sum.im);
      }
    }
  }

  static SLAP_FAST_DEVICE void spectrum_gradient(const LogMelBlock& block, int t) {
    const LogMelSizes& sizes = block.sizes;
    const int frame = t % sizes.frames;
    const int first = (sizes.steps / 2 + 1) * sizes.columns;
    for (int bin = t / sizes.frames; bin <= sizes.n_fft / 2; bin += slots(sizes)) {
      Complex z = load(block, first + bin, frame);
      if (2 * bin % sizes.n_fft == 0) z.im = 0.0f;
      const float slope = spectrum_slope(sizes, z.re, z.im, grad_energy(block, frame, bin));
      store(block, first + bin, frame, {slope * z.re, slope * z.im});
    }
  }

  static SLAP_FAST_DEVICE void rows_adjoint(const LogMelBlock& block, int t) {
    const LogMelSizes& sizes = block.sizes;
    const int frame = t % sizes.frames;
    const int first = (sizes.steps / 2 + 1) * sizes.columns;
    for (int task = t / sizes.frames; task < first; task += slots(sizes)) {
      const int row = task / sizes.columns, column = task % sizes.columns;
      const bool own_mirror = 2 * row % sizes.steps == 0;
      Complex sum{0.0f, 0.0f};
      for (int k = 0, root = 0; k < sizes.columns; ++k) {
        const int bin = row + sizes.steps * k;
        const bool upper = 2 * bin > sizes.n_fft;
        if (upper && own_mirror) break;
        const Complex grad = load(block, first + (upper ? sizes.n_fft - bin : bin), frame);
        sum = sum + (upper ? conj(grad) : grad) * conj(block.tables.roots[root]);
        root = advance_root(root, column * sizes.steps, sizes.n_fft);
      }
      store(block, task, frame, sum * conj(block.tables.roots[row * column]));
    }
  }

  static SLAP_FAST_DEVICE void columns_adjoint(const LogMelBlock& block, int t) {
    const LogMelSizes& sizes = block.sizes;
    const int frame = t % sizes.frames;
    float* gradients = block.shared + sizes.spectrum + gradient_word(sizes) * sizes.frames;
    for (int n = t / sizes.frames; n < sizes.n_fft; n += slots(sizes)) {
      const int column = n % sizes.columns, step = n / sizes.columns;
      float sum = 0.0f;
      for (int row = 0, root = 0; row <= sizes.steps / 2; ++row) {
        const Complex z = load(block, row * sizes.columns + column, frame), w = block.tables.roots[root];
        sum += z.re * w.re + z.im * w.im;
        root = advance_root(root, step * sizes.columns, sizes.n_fft);
      }
      gradients[n * sizes.frames + frame] = sum * block.tables.taps[column * sizes.steps + step].window;
    }
  }

  struct BinWords {
    int real, imag;
  };
  static BinWords bin_words(const LogMelSizes& sizes, int bin) {
    const int real = gradient_word(sizes) + 2 * bin;
    return {real * sizes.frames, (2 * bin % sizes.n_fft ? real + 1 : real) * sizes.frames};
  }
  static int spectrum_words(const LogMelSizes& sizes) { return gradient_word(sizes) + 2 * (sizes.n_fft / 2 + 1); }
  static SLAP_FAST_DEVICE int gradient_word(const LogMelSizes& sizes) {
    return 2 * (sizes.steps / 2 + 1) * sizes.columns;
  }

 private:
  static SLAP_FAST_DEVICE int advance_root(int root, int by, int n) {
    return root + by >= n ? root + by - n : root + by;
  }

  static SLAP_FAST_DEVICE Complex load(const LogMelBlock& block, int index, int frame) {
    const float* words = block.shared + block.sizes.spectrum + 2 * index * block.sizes.frames + frame;
    return {words[0], words[block.sizes.frames]};
  }

  static SLAP_FAST_DEVICE void store(const LogMelBlock& block, int index, int frame, Complex value) {
    float* words = block.shared + block.sizes.spectrum + 2 * index * block.sizes.frames + frame;
    words[0] = value.re;
    words[block.sizes.frames] = value.im;
  }
};

}  // namespace slap_fast::cuda
