// Naive float64 log-mel and its gradient. Each value comes with a bound on the float32 error, so that tolerances adapt
// to the conditioning of every value.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "log_mel_spec.h"

namespace testing {

using Doubles = std::vector<double>;

class LogMelReference {
 public:
  // Bounds are two roundings of the sum of magnitudes, several times the typical error.
  static constexpr double kRounding = 2 * 0x1p-24;

  struct Frame {
    Doubles re, im, energy;  // [n_bins]
    Doubles mel, mel_bound;  // [n_mels]
    double bound = 0.0;      // on each of re, im
  };

  LogMelReference(const slap_fast::LogMelSpec& spec, const float* samples, std::int64_t length)
      : spec_(spec), length_(length), n_bins_(spec.n_fft / 2 + 1) {
    for (std::int64_t i = 0; i < length; ++i) {
      const double x = static_cast<double>(samples[i]) * spec.input_scale;
      const bool emphasized = spec.preemphasis_over_clip && i > 0;
      const double p = emphasized ? spec.preemphasis * (static_cast<double>(samples[i - 1]) * spec.input_scale) : 0.0;
      samples_.push_back(x - p);
      magnitudes_.push_back(std::fabs(x) + std::fabs(p));
    }
    for (std::int64_t i = 0; i < spec.n_fft; ++i) {
      cos_.push_back(std::cos(2.0 * M_PI * static_cast<double>(i) / static_cast<double>(spec.n_fft)));
      sin_.push_back(std::sin(2.0 * M_PI * static_cast<double>(i) / static_cast<double>(spec.n_fft)));
    }
  }

  // Index of the sample at a padded position; -1: zero.
  std::int64_t source(std::int64_t position) const {
    if (length_ == 0) return -1;
    while (position < 0 || position >= length_) {
      if (spec_.padding == slap_fast::Padding::zeros) return -1;
      if (length_ == 1) return 0;
      const std::int64_t edge = spec_.padding == slap_fast::Padding::kaldi;
      position = position < 0 ? -edge - position : 2 * (length_ - 1) + edge - position;
    }
    return position;
  }

  std::int64_t start(std::int64_t frame) const { return spec_.first_sample + frame * spec_.hop_length; }

  Frame frame(std::int64_t index) const {
    const std::int64_t win = spec_.win_length;
    Doubles x(win), magnitude(win);
    for (std::int64_t i = 0; i < win; ++i) {
      const std::int64_t from = source(start(index) + i);
      x[i] = from < 0 ? 0.0 : samples_[from];
      magnitude[i] = from < 0 ? 0.0 : magnitudes_[from];
    }
    if (spec_.remove_dc_offset) {
      double mean = 0.0, size = 0.0;
      for (std::int64_t i = 0; i < win; ++i) mean += x[i] / win, size += magnitude[i] / win;
      for (std::int64_t i = 0; i < win; ++i) x[i] -= mean, magnitude[i] += size;
    }
    Frame frame;
    const double p = spec_.preemphasis_over_clip ? 0.0 : spec_.preemphasis;
    for (std::int64_t i = win - 1; i >= 0; --i) {
      const std::int64_t previous = std::max<std::int64_t>(i - 1, 0);
      x[i] = (x[i] - p * x[previous]) * spec_.window[i];
      frame.bound += (magnitude[i] + p * magnitude[previous]) * std::fabs(spec_.window[i]);
    }
    // Allows for squares that underflow in float32.
    if (frame.bound > 0.0) frame.bound = kRounding * frame.bound + 1e-18;
    spectrum(x, frame);
    for (std::int64_t m = 0; m < spec_.n_mels; ++m) {
      double mel = 0.0, bound = 0.0;
      for (std::int64_t k = 0; k < n_bins_; ++k) {
        const double weight = spec_.filters[m * n_bins_ + k];
        const double size = std::hypot(frame.re[k], frame.im[k]);
        const double change = frame.bound * (spec_.magnitude ? 1.5 : 3.0 * (size + frame.bound));
        mel += weight * frame.energy[k];
        bound += std::fabs(weight) * (change + kRounding * frame.energy[k]);
      }
      frame.mel.push_back(mel);
      frame.mel_bound.push_back(bound);
    }
    return frame;
  }

  // Whether `actual` equals the value of filter m within float32 accuracy.
  bool agrees(const Frame& frame, std::int64_t m, double actual) const {
    const double low = value(frame.mel[m] - frame.mel_bound[m]), high = value(frame.mel[m] + frame.mel_bound[m]);
    const double size = std::fabs(low - spec_.log_shift) + std::fabs(high - spec_.log_shift);
    const double slack = kRounding * (size + std::fabs(spec_.log_scale) + std::fabs(spec_.log_shift)) + 1e-30;
    return actual >= std::min(low, high) - slack && actual <= std::max(low, high) + slack;
  }

  // Whether the gradient through filter m is well conditioned: clear of the floor and of rounding errors.
  bool has_clear_gradient(const Frame& frame, std::int64_t m) const {
    const double mel = frame.mel[m], bound = frame.mel_bound[m];
    return std::fabs(mel - spec_.log_floor) > bound &&
           (!spec_.logarithm || bound < 0.02 * std::fabs(mel + spec_.log_guard));
  }

  // Adds one frame to grad [length] and bound [length]. Call finish() after the last frame.
  void add_gradient(const Frame& frame, std::int64_t index, const float* grad_mels, Doubles& grad,
                    Doubles& bound) const {
    const std::int64_t win = spec_.win_length;
    Doubles re(n_bins_), im(n_bins_);
    double spectral_bound = 0.0, spectral_size = 0.0;
    for (std::int64_t k = 0; k < n_bins_; ++k) {
      double slope = 0.0, size = 0.0, slope_bound = 0.0;
      for (std::int64_t m = 0; m < spec_.n_mels; ++m) {
        if (!(frame.mel[m] > spec_.log_floor)) continue;
        const double denominator = spec_.logarithm ? frame.mel[m] + spec_.log_guard : 1.0;
        const double term =
            static_cast<double>(spec_.filters[m * n_bins_ + k]) * grad_mels[m] * spec_.log_scale / denominator;
        const double relative = spec_.logarithm ? 1.1 * frame.mel_bound[m] / std::fabs(denominator) : 0.0;
        slope += term;
        size += std::fabs(term);
        slope_bound += std::fabs(term) * (relative + kRounding);
      }
      const double length = std::hypot(frame.re[k], frame.im[k]), root = frame.energy[k];
      double factor = 2.0 * slope;
      if (spec_.magnitude) {
        factor = root > 0.0 ? slope / root : 0.0;
        if (frame.bound > 0.0) spectral_bound += size * std::min(2.0, 3.0 * frame.bound / root) + slope_bound;
      } else {
        spectral_bound += 3.0 * (size * frame.bound + (length + frame.bound) * slope_bound);
      }
      re[k] = frame.re[k] * factor;
      im[k] = frame.im[k] * factor;
      spectral_size += std::fabs(re[k]) + std::fabs(im[k]);
    }
    spectral_bound += kRounding * spectral_size + 1e-30;
    Doubles g(win), b(win);
    for (std::int64_t i = 0; i < win; ++i) {
      for (std::int64_t k = 0; k < n_bins_; ++k) {
        const std::int64_t angle = i * k % spec_.n_fft;
        g[i] += re[k] * cos_[angle] - im[k] * sin_[angle];
      }
      g[i] *= spec_.window[i];
      b[i] = spectral_bound * std::fabs(spec_.window[i]);
    }
    if (!spec_.preemphasis_over_clip) {
      const double p = spec_.preemphasis, g0 = g[0], b0 = b[0];
      for (std::int64_t i = 0; i + 1 < win; ++i) g[i] -= p * g[i + 1], b[i] += p * b[i + 1];
      g[0] -= p * g0;
      b[0] += p * b0;
    }
    if (spec_.remove_dc_offset) {
      double mean = 0.0, size = 0.0;
      for (std::int64_t i = 0; i < win; ++i) mean += g[i] / win, size += b[i] / win;
      for (std::int64_t i = 0; i < win; ++i) g[i] -= mean, b[i] += size;
    }
    for (std::int64_t i = 0; i < win; ++i) {
      const std::int64_t to = source(start(index) + i);
      if (to < 0) continue;
      grad[to] += g[i];
      bound[to] += b[i] + kRounding * std::fabs(g[i]);
    }
  }

  void finish(Doubles& grad, Doubles& bound) const {
    const double p = spec_.preemphasis_over_clip ? spec_.preemphasis : 0.0;
    for (std::int64_t i = 0; i < length_; ++i) {
      if (i + 1 < length_) grad[i] -= p * grad[i + 1], bound[i] += p * bound[i + 1];
      grad[i] *= spec_.input_scale;
      bound[i] = bound[i] * std::fabs(spec_.input_scale) + kRounding * std::fabs(grad[i]);
    }
  }

 private:
  void spectrum(const Doubles& x, Frame& frame) const {
    for (std::int64_t k = 0; k < n_bins_; ++k) {
      double re = 0.0, im = 0.0;
      for (std::int64_t i = 0, angle = 0; i < spec_.win_length; ++i) {
        re += x[i] * cos_[angle];
        im -= x[i] * sin_[angle];
        angle += k;
        if (angle >= spec_.n_fft) angle -= spec_.n_fft;
      }
      const double power = re * re + im * im + spec_.power_guard;
      frame.re.push_back(re);
      frame.im.push_back(im);
      frame.energy.push_back(spec_.magnitude ? std::sqrt(power) : power);
    }
  }

  double value(double mel) const {
    const double guarded = std::max<double>(mel, spec_.log_floor) + spec_.log_guard;
    return (spec_.logarithm ? std::log(guarded) : guarded) * spec_.log_scale + spec_.log_shift;
  }

  const slap_fast::LogMelSpec& spec_;
  std::int64_t length_, n_bins_;
  Doubles samples_, magnitudes_, cos_, sin_;
};

}  // namespace testing
