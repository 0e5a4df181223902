// Emulated blocks of csrc/cuda/log_mel.cu against a float64 reference, forward and backward.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "log_mel_cuda_emulation.h"

namespace {

using namespace slap_fast;
using namespace slap_fast::cuda;

constexpr double kPi = 3.14159265358979323846;
constexpr std::int64_t kSharedBytes = 227 * 1024;

void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
  std::exit(1);
}

std::int64_t mirrored(std::int64_t position, std::int64_t length, Padding padding) {
  while (position < 0 || position >= length) {
    if (padding == Padding::zeros) return -1;
    if (length == 1) return 0;
    const int edge = padding == Padding::kaldi;
    if (position < 0) position = -position - edge;
    if (position >= length) position = 2 * (length - 1) - position + edge;
  }
  return position;
}

// Frames of one clip, and the gradient of sum(grad * frames) with respect to its samples.
struct Reference {
  std::vector<double> mels, tolerances, gradient;
};

Reference reference(const LogMelSpec& spec, const std::vector<double>& clip, std::int64_t frames, const float* grad) {
  const std::int64_t n = spec.n_fft, win = spec.win_length, bins = n / 2 + 1;
  const auto length = static_cast<std::int64_t>(clip.size());
  const double over_clip = spec.preemphasis_over_clip ? spec.preemphasis : 0.0;
  const double in_frame = spec.preemphasis_over_clip ? 0.0 : spec.preemphasis;
  std::vector<double> x(length), grad_x(length);
  for (std::int64_t t = 0; t < length; ++t) x[t] = spec.input_scale * (t ? clip[t] - over_clip * clip[t - 1] : clip[t]);
  Reference result;
  std::vector<double> cosines(n), sines(n);
  for (std::int64_t i = 0; i < n; ++i) {
    cosines[i] = std::cos(2 * kPi * i / n);
    sines[i] = std::sin(2 * kPi * i / n);
  }
  for (std::int64_t frame = 0; frame < frames; ++frame) {
    std::vector<std::int64_t> source(win);
    std::vector<double> d(win), v(win), re(bins), im(bins), energies(bins), grad_energies(bins), grad_v(win);
    double mean = 0.0, squares = 0.0;
    for (std::int64_t i = 0; i < win; ++i) {
      source[i] = mirrored(spec.first_sample + frame * spec.hop_length + i, length, spec.padding);
      d[i] = source[i] < 0 ? 0.0 : x[source[i]];
      mean += d[i] / static_cast<double>(win);
      squares += d[i] * d[i];
    }
    for (std::int64_t i = 0; i < win; ++i) d[i] -= spec.remove_dc_offset ? mean : 0.0;
    for (std::int64_t i = 0; i < win; ++i) v[i] = (d[i] - in_frame * d[i ? i - 1 : 0]) * spec.window[i];
    for (std::int64_t k = 0; k < bins; ++k) {
      for (std::int64_t i = 0; i < win; ++i) {
        re[k] += v[i] * cosines[i * k % n];
        im[k] -= v[i] * sines[i * k % n];
      }
      energies[k] = re[k] * re[k] + im[k] * im[k] + spec.power_guard;
      if (spec.magnitude) energies[k] = std::sqrt(energies[k]);
    }
    double peak = 0.0;
    for (std::int64_t k = 0; k < bins; ++k) peak = std::max(peak, std::hypot(re[k], im[k]));
    // Rounding error of a bin: of the samples, of their sum, and of the largest bin.
    const double samples = std::sqrt(squares) * (1.0 + std::sqrt(static_cast<double>(win)) / 16.0);
    const double rounding = 1e-6 * (samples + peak);
    for (std::int64_t m = 0; m < spec.n_mels; ++m) {
      double mel = 0.0, error = 0.0;
      for (std::int64_t k = 0; k < bins; ++k) {
        const double weight = spec.filters[m * bins + k];
        mel += weight * energies[k];
        error += weight != 0.0 ? 6e-8 * mel : 0.0;  // rounding of the sum
        error += weight * rounding * (spec.magnitude ? 1.0 : 2.0 * std::hypot(re[k], im[k]) + rounding);
      }
      const double guarded = std::max<double>(mel, spec.log_floor) + spec.log_guard;
      result.mels.push_back((spec.logarithm ? std::log(guarded) : guarded) * spec.log_scale + spec.log_shift);
      const double relative = error / (spec.logarithm ? std::max(guarded, 1e-30) : 1.0);
      result.tolerances.push_back(1e-5 + 1e-6 * std::fabs(result.mels.back()) + 2.0 * relative);
      if (mel <= spec.log_floor) continue;
      const double slope = grad[frame * spec.n_mels + m] * spec.log_scale / (spec.logarithm ? guarded : 1.0);
      for (std::int64_t k = 0; k < bins; ++k) grad_energies[k] += slope * spec.filters[m * bins + k];
    }
    double sum = 0.0;
    for (std::int64_t i = 0; i < win; ++i) {
      for (std::int64_t k = 0; k < bins; ++k) {
        const double slope = spec.magnitude ? (energies[k] > 0 ? 1 / energies[k] : 0.0) : 2.0;
        grad_v[i] += grad_energies[k] * slope * (re[k] * cosines[i * k % n] - im[k] * sines[i * k % n]);
      }
      grad_v[i] *= spec.window[i];
      sum += (1 - in_frame) * grad_v[i];
    }
    for (std::int64_t i = 0; i < win; ++i) {
      double g = grad_v[i] - (i + 1 < win ? in_frame * grad_v[i + 1] : 0.0) - (i ? 0.0 : in_frame * grad_v[0]);
      if (spec.remove_dc_offset) g -= sum / static_cast<double>(win);
      if (source[i] >= 0) grad_x[source[i]] += g;
    }
  }
  for (std::int64_t t = 0; t < length; ++t)
    result.gradient.push_back(spec.input_scale * (grad_x[t] - (t + 1 < length ? over_clip * grad_x[t + 1] : 0.0)));
  return result;
}

using Random = std::mt19937_64;

std::int64_t choose(Random& random, const std::vector<std::int64_t>& values) {
  return values[random() % values.size()];
}

LogMelSpec random_spec(Random& random, std::int64_t n_fft) {
  LogMelSpec spec;
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  spec.n_fft = n_fft;
  spec.win_length = random() % 2 ? n_fft : 1 + static_cast<std::int64_t>(random() % n_fft);
  spec.hop_length = 1 + static_cast<std::int64_t>(random() % (random() % 4 ? (n_fft + 1) / 2 : 2 * n_fft));
  spec.n_mels = 1 + static_cast<std::int64_t>(random() % 70);
  spec.padding = static_cast<Padding>(random() % 3);
  const auto reach = static_cast<std::int64_t>(random() % n_fft);
  spec.first_sample = random() % 3 ? -reach : reach / 4;
  spec.input_scale = random() % 3 ? 1.0f : 32768.0f;
  spec.remove_dc_offset = random() % 2;
  spec.preemphasis = random() % 3 ? 0.97f : 0.0f;
  spec.preemphasis_over_clip = random() % 2;
  spec.magnitude = random() % 3 == 0;
  spec.power_guard = spec.magnitude || random() % 3 == 0 ? 1e-3f : 0.0f;
  spec.log_floor = random() % 2 ? 1e-10f : 0.5f;
  spec.log_guard = random() % 2 ? 0.0f : 1e-6f;
  spec.logarithm = random() % 4;
  spec.log_scale = 0.5f + uniform(random);
  spec.log_shift = uniform(random);
  for (std::int64_t i = 0; i < spec.win_length; ++i)
    spec.window.push_back(static_cast<float>(0.54 - 0.46 * std::cos(2 * kPi * i / spec.win_length)));
  const std::int64_t bins = n_fft / 2 + 1;
  spec.filters.assign(spec.n_mels * bins, 0.0f);
  for (std::int64_t m = 0; m < spec.n_mels; ++m) {
    const auto first = static_cast<std::int64_t>(random() % bins);
    const std::int64_t width = 1 + static_cast<std::int64_t>(random() % 12);
    for (std::int64_t k = first; k < std::min(bins, first + width); ++k) spec.filters[m * bins + k] = uniform(random);
    if (random() % 20 == 0) std::fill_n(spec.filters.begin() + m * bins, bins, 0.0f);
    if (random() % 20 == 0) std::fill_n(spec.filters.begin() + m * bins, bins, 0.01f);
  }
  return spec;
}

std::string describe(const LogMelSpec& s) {
  return "n_fft " + std::to_string(s.n_fft) + " win " + std::to_string(s.win_length) + " hop " +
         std::to_string(s.hop_length) + " mels " + std::to_string(s.n_mels) + " first " +
         std::to_string(s.first_sample) + " padding " + std::to_string(static_cast<int>(s.padding)) + " dc " +
         std::to_string(s.remove_dc_offset) + " preemphasis " + std::to_string(s.preemphasis) + " over clip " +
         std::to_string(s.preemphasis_over_clip) + " magnitude " + std::to_string(s.magnitude);
}

double relative_error(const float* actual, const std::vector<double>& expected) {
  double error = 0.0, norm = 1e-30;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(error / norm);
}

struct Batch {
  std::vector<std::int64_t> cu_seqlens{0}, cu_frames{0};
  std::vector<float> floats;
  std::vector<std::int16_t> int16s;
  LogMelInput input(bool as_int16) const {
    return {as_int16 ? nullptr : floats.data(),
            as_int16 ? int16s.data() : nullptr,
            cu_seqlens.back(),
            cu_seqlens.data(),
            cu_frames.data(),
            static_cast<std::int64_t>(cu_seqlens.size()) - 1,
            cu_frames.back()};
  }
};

Batch random_batch(Random& random, const LogMelSpec& spec, const std::vector<std::int64_t>& lengths) {
  Batch batch;
  for (std::int64_t length : lengths) {
    // At least all frames that start inside the clip.
    const std::int64_t reach = length - spec.first_sample;
    const std::int64_t frames = length == 0 ? 0 : 1 + std::max<std::int64_t>(0, reach - 1) / spec.hop_length;
    batch.cu_seqlens.push_back(batch.cu_seqlens.back() + length);
    batch.cu_frames.push_back(batch.cu_frames.back() + std::min<std::int64_t>(frames, 90));
  }
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < batch.cu_seqlens.back(); ++i) {
    const float x = std::clamp(0.2f * normal(random) + 0.1f, -1.0f, 1.0f);
    batch.int16s.push_back(static_cast<std::int16_t>(x * 32767.0f));
    batch.floats.push_back(static_cast<float>(batch.int16s.back()) / 32768.0f);
  }
  return batch;
}

// Gradients of near-zero bins and mel values are dominated by rounding; guards bound them away from zero.
LogMelSpec well_conditioned(LogMelSpec spec) {
  const float energy = spec.input_scale * (spec.magnitude ? 1.0f : spec.input_scale);
  spec.log_guard = 0.1f * energy;
  if (spec.magnitude) spec.power_guard = 0.01f * energy * energy;
  return spec;
}

void check_values(Random& random, const LogMelSpec& spec, const std::vector<std::int64_t>& lengths) {
  const std::string what = describe(spec);
  const LogMelSpec conditioned = well_conditioned(spec);
  const Batch batch = random_batch(random, spec, lengths);
  const LogMelInput input = batch.input(false);
  const LogMelPlan forward = plan_log_mel(spec, false, kSharedBytes);
  const LogMelPlan backward = plan_log_mel(conditioned, true, kSharedBytes);
  const std::size_t values = input.frames * spec.n_mels;
  std::vector<float> mels(values, NAN), repeated(values, NAN), grad(values);
  std::normal_distribution<float> normal;
  for (float& g : grad) g = normal(random);
  emulate_forward(forward, input, mels.data(), 1);
  emulate_forward(forward, batch.input(true), repeated.data(), 2);
  require(mels == repeated, what + ": bits depend on int16 samples or thread order");
  std::vector<float> gradient(input.samples, NAN), repeated_gradient(input.samples, NAN);
  emulate_backward(backward, input, grad.data(), gradient.data(), 3);
  emulate_backward(backward, input, grad.data(), repeated_gradient.data(), 4);
  require(gradient == repeated_gradient, what + ": gradient bits depend on thread order");

  std::vector<double> expected_gradient;
  for (std::size_t c = 0; c < lengths.size(); ++c) {
    const std::vector<double> clip(batch.floats.begin() + batch.cu_seqlens[c],
                                   batch.floats.begin() + batch.cu_seqlens[c + 1]);
    const std::int64_t first = batch.cu_frames[c] * spec.n_mels;
    const Reference expected = reference(spec, clip, batch.cu_frames[c + 1] - batch.cu_frames[c], grad.data() + first);
    for (std::size_t i = 0; i < expected.mels.size(); ++i) {
      const double error = std::fabs(mels[first + i] - expected.mels[i]);
      require(error <= expected.tolerances[i], what + ": clip of " + std::to_string(lengths[c]) + ", value " +
                                                   std::to_string(i) + " is " + std::to_string(mels[first + i]) +
                                                   ", not " + std::to_string(expected.mels[i]));
    }
    const Reference slopes =
        reference(conditioned, clip, batch.cu_frames[c + 1] - batch.cu_frames[c], grad.data() + first);
    expected_gradient.insert(expected_gradient.end(), slopes.gradient.begin(), slopes.gradient.end());
    Batch alone;
    alone.cu_seqlens.push_back(lengths[c]);
    alone.cu_frames.push_back(batch.cu_frames[c + 1] - batch.cu_frames[c]);
    alone.floats.assign(clip.begin(), clip.end());
    std::vector<float> mels_alone(alone.cu_frames.back() * spec.n_mels), gradient_alone(lengths[c]);
    emulate_forward(forward, alone.input(false), mels_alone.data(), 5);
    emulate_backward(backward, alone.input(false), grad.data() + first, gradient_alone.data(), 6);
    require(std::equal(mels_alone.begin(), mels_alone.end(), mels.begin() + first) &&
                std::equal(gradient_alone.begin(), gradient_alone.end(), gradient.begin() + batch.cu_seqlens[c]),
            what + ": bits depend on other clips");
  }
  const double error = relative_error(gradient.data(), expected_gradient);
  require(error < 1e-5, what + ": gradient is off by " + std::to_string(error));
}

// A NaN sample affects exactly the frames that contain it and the gradients of these frames' samples.
void check_nan(Random& random, std::int64_t n_fft) {
  LogMelSpec spec = random_spec(random, n_fft);
  spec.padding = Padding::zeros;
  spec.first_sample = 0;
  std::fill(spec.filters.begin(), spec.filters.end(), 0.01f);
  Batch batch = random_batch(random, spec, {6 * n_fft});
  const std::int64_t bad = 3 * n_fft + 1;
  batch.floats[bad] = NAN;
  const LogMelInput input = batch.input(false);
  std::vector<float> mels(input.frames * spec.n_mels), grad(mels.size(), 1.0f), gradient(input.samples);
  emulate_forward(plan_log_mel(spec, false, kSharedBytes), input, mels.data(), 1);
  emulate_backward(plan_log_mel(spec, true, kSharedBytes), input, grad.data(), gradient.data(), 1);
  std::vector<bool> expect_nan(input.samples);
  const std::int64_t emphasis = spec.preemphasis_over_clip && spec.preemphasis != 0.0f;
  for (std::int64_t f = 0; f < input.frames; ++f) {
    const std::int64_t begin = f * spec.hop_length, end = begin + spec.win_length;
    const bool sees = begin < bad + 1 + emphasis && bad < end;
    for (std::int64_t m = 0; m < spec.n_mels; ++m)
      require(std::isnan(mels[f * spec.n_mels + m]) == sees, describe(spec) + ": NaN in frame " + std::to_string(f));
    for (std::int64_t i = std::max<std::int64_t>(0, begin - emphasis); sees && i < std::min(end, input.samples); ++i)
      expect_nan[i] = true;
  }
  for (std::int64_t i = 0; i < input.samples; ++i)
    require(std::isnan(gradient[i]) == expect_nan[i], describe(spec) + ": NaN gradient at " + std::to_string(i));
}

// Array surrounded by sentinels, which detect out-of-bounds writes.
class Guarded {
 public:
  explicit Guarded(std::int64_t size) : values_(size + 2 * kMargin, kSentinel) {}
  float* data() { return values_.data() + kMargin; }
  void require_untouched_around(const std::string& what) const {
    const auto untouched = [](float value) { return value == kSentinel; };
    require(std::all_of(values_.begin(), values_.begin() + kMargin, untouched), what + ": written before the array");
    require(std::all_of(values_.end() - kMargin, values_.end(), untouched), what + ": written after the array");
  }

 private:
  static constexpr std::int64_t kMargin = 1 << 16;
  static constexpr float kSentinel = -1234.5f;
  std::vector<float> values_;
};

// Malformed offsets give undefined frames, but nothing is touched outside the arrays.
void check_malformed(Random& random, const LogMelSpec& spec) {
  const std::int64_t int64_max = INT64_MAX;
  for (int trial = 0; trial < 12; ++trial) {
    Batch batch = random_batch(random, spec, {200, 700, 0, 3});
    LogMelInput input = batch.input(false);
    for (auto* offsets : {&batch.cu_seqlens, &batch.cu_frames})
      (*offsets)[random() % offsets->size()] = choose(random, {-int64_max, -1, 0, 5, 899, 100000, int64_max});
    Guarded mels(input.frames * spec.n_mels), gradient(input.samples);
    emulate_forward(plan_log_mel(spec, false, kSharedBytes), input, mels.data(), 1);
    mels.require_untouched_around(describe(spec) + ": frames with malformed offsets");
    // Of exactly this size, so that a build with sanitizers finds reads outside.
    const std::vector<float> grad(mels.data(), mels.data() + input.frames * spec.n_mels);
    emulate_backward(plan_log_mel(spec, true, kSharedBytes), input, grad.data(), gradient.data(), 1);
    gradient.require_untouched_around(describe(spec) + ": gradient with malformed offsets");
  }
}

// Every n_fft that slap_fast/ops/log_mel/backend_cuda.py accepts fits the smallest shared memory (99 KiB).
void check_fits(Random& random) {
  for (std::int64_t n_fft : {100, 256, 400, 512, 1000, 1024, 2047, 2048, 4093, 4096})
    for (std::int64_t hop : {std::int64_t{1}, std::int64_t{2}, n_fft / 33, n_fft / 4, n_fft / 2 + 1, 3 * n_fft}) {
      LogMelSpec spec = random_spec(random, n_fft);
      spec.hop_length = hop;
      for (bool backward : {false, true}) {
        const std::int64_t bytes = plan_log_mel(spec, backward, 99 * 1024).sizes.shared_floats * 4;
        require(bytes <= 99 * 1024, describe(spec) + ": too much shared memory");
      }
    }
}

void check_invalid_specs() {
  Random random(3);
  LogMelSpec spec = random_spec(random, 64);
  spec.window.pop_back();
  LogMelSpec large = random_spec(random, 60000);
  for (const LogMelSpec& bad : {spec, large, LogMelSpec()}) {
    bool thrown = false;
    try {
      plan_log_mel(bad, true, kSharedBytes);
    } catch (const std::invalid_argument&) {
      thrown = true;
    }
    require(thrown, "accepted: " + describe(bad));
  }
}

}  // namespace

int main(int count, char** arguments) {
  Random random(count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 11);
  for (std::int64_t n_fft : {1,   2,   3,   4,   30,  64,  97,  105, 128, 200,  256,  256,
                             400, 400, 400, 441, 512, 512, 512, 512, 600, 1024, 1024, 2048}) {
    const LogMelSpec spec = random_spec(random, n_fft);
    check_values(random, spec, {1, 0, 2, n_fft / 2 + 1, n_fft, 3 * n_fft + 7, 900});
  }
  // SLAP's parameters, with enough frames for several tiles and blocks.
  LogMelSpec slap = random_spec(random, 512);
  slap.win_length = 400;
  slap.window.assign(400, 1.0f);
  slap.hop_length = 160;
  slap.padding = Padding::zeros;
  slap.first_sample = 0;
  check_values(random, slap, {12000, 399, 5300});
  for (std::int64_t n_fft : {90, 256, 400, 512}) check_nan(random, n_fft);
  check_malformed(random, slap);
  check_fits(random);
  check_invalid_specs();
  std::puts("ok");
  return 0;
}
