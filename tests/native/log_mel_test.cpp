// Log-mel with random parameters and clips: values and gradients against a float64 reference, out-of-bounds accesses,
// and bitwise independence of threads, other clips and layout.
#include "cpu/log_mel.h"

#include <limits>
#include <optional>

#include "log_mel_reference.h"
#include "native_tests.h"
#include "testing.h"

namespace testing {
namespace {

using slap_fast::LogMel;
using slap_fast::LogMelSpec;
using slap_fast::PackedWaveform;
using slap_fast::PatchLayout;
using Offsets = std::vector<std::int64_t>;

constexpr int kThreadCounts[] = {-1, 0, 3, 64};

std::vector<float> random_filters(Random& random, std::int64_t rows, std::int64_t columns) {
  std::vector<float> filters(static_cast<std::size_t>(rows * columns));
  const std::int64_t kind = random.between(0, 3);  // narrow bands, dense, sparse, all zero
  for (std::int64_t row = 0; row < rows && kind < 3; ++row) {
    if (random.once_in(6)) continue;
    const std::int64_t width = kind == 1 ? columns : random.between(1, std::min<std::int64_t>(columns, 40));
    const std::int64_t begin = random.between(0, columns - width);
    for (std::int64_t i = begin; i < begin + width; ++i)
      if (kind != 2 || random.once_in(3)) filters[row * columns + i] = random.uniform(0.0f, 0.1f);
  }
  return filters;
}

LogMelSpec random_spec(Random& random, std::int64_t max_n_fft) {
  LogMelSpec spec;
  const std::vector<std::int64_t> sizes{1,  2,  3,  4,  5,  6,   7,   8,   9,   11,  13,  16,  25,
                                        27, 30, 49, 60, 97, 128, 210, 257, 400, 512, 599, 1024};
  do {
    spec.n_fft = random.once_in(2) ? random.of(sizes) : random.between(1, 600);
  } while (spec.n_fft > max_n_fft);
  spec.win_length = random.once_in(3) ? spec.n_fft : random.between(1, spec.n_fft);
  spec.hop_length = random.between(1, random.once_in(4) ? 2 * spec.win_length + 20 : spec.win_length);
  spec.n_mels = random.once_in(2) ? random.between(1, 20) : random.between(1, 130);
  const std::vector<std::int64_t> starts{0, -spec.win_length / 2, -spec.n_fft / 2, -3 * spec.n_fft - 7, 5, -1};
  spec.first_sample = random.of(starts);
  using slap_fast::Padding;
  spec.padding = random.of(std::vector<Padding>{Padding::zeros, Padding::reflect, Padding::kaldi});
  spec.input_scale = random.of(std::vector<float>{1.0f, 1.0f, 32768.0f, 0.3f});
  spec.remove_dc_offset = random.once_in(2);
  spec.preemphasis = random.of(std::vector<float>{0.0f, 0.5f, 0.97f, 1.0f});
  spec.preemphasis_over_clip = random.once_in(2);
  spec.magnitude = random.once_in(2);
  spec.power_guard = random.of(std::vector<float>{0.0f, 1e-3f});
  spec.log_floor = random.of(std::vector<float>{0.0f, 1e-7f, 1e-3f});
  spec.log_guard = spec.log_floor == 0.0f ? 1e-5f : random.of(std::vector<float>{0.0f, 1e-2f});
  spec.logarithm = !random.once_in(4);
  spec.log_scale = random.of(std::vector<float>{1.0f, 0.3f, 8.7f});
  spec.log_shift = random.of(std::vector<float>{0.0f, -2.5f});
  for (std::int64_t i = 0; i < spec.win_length; ++i) spec.window.push_back(random.uniform(0.0f, 1.0f));
  spec.filters = random_filters(random, spec.n_mels, spec.n_fft / 2 + 1);
  return spec;
}

// Frame counts are usually those of the padded clip, sometimes arbitrary: any count is valid.
struct Clips {
  Offsets cu_seqlens{0}, cu_frames{0};
  std::vector<float> samples;

  std::int64_t count() const { return static_cast<std::int64_t>(cu_seqlens.size()) - 1; }
  std::int64_t frames() const { return cu_frames.back(); }
  std::int64_t length(std::int64_t clip) const { return cu_seqlens[clip + 1] - cu_seqlens[clip]; }

  void add(Random& random, const LogMelSpec& spec, std::int64_t length) {
    const std::int64_t covered = length + 2 * std::max<std::int64_t>(0, -spec.first_sample);
    std::int64_t frames = length == 0 ? 0 : 1 + std::max<std::int64_t>(0, covered - spec.win_length) / spec.hop_length;
    if (random.once_in(4)) frames = std::max<std::int64_t>(0, frames + random.between(-2, 3));
    cu_seqlens.push_back(cu_seqlens.back() + length);
    cu_frames.push_back(cu_frames.back() + frames);
    // Silence, subnormal samples, moderate and full-scale noise, and sometimes a constant signal.
    const float loudness = random.of(std::vector<float>{0.0f, 1e-40f, 0.1f, 0.1f, 1.0f, 1.0f});
    const float offset = random.once_in(4) ? 0.5f : 0.0f;
    for (std::int64_t i = 0; i < length; ++i) {
      const float extreme = random.once_in(2) ? -1.0f : 32767.0f / 32768.0f;
      const float sample = loudness == 1.0f && random.once_in(3) ? extreme : random.uniform(-loudness, loudness);
      samples.push_back(offset != 0.0f ? offset : sample);
    }
  }
};

Clips random_clips(Random& random, const LogMelSpec& spec, std::int64_t frames) {
  Clips clips;
  const std::int64_t win = spec.win_length, hop = spec.hop_length;
  for (std::int64_t count = random.between(0, 6); count > 0 && clips.frames() < frames; --count) {
    const std::int64_t many = random.between(1, std::max<std::int64_t>(1, std::min(frames, 200000 / hop)));
    const Offsets lengths{0, 1, 2, win - 1, win, win + 1, win + hop - 1, win + hop, win + many * hop};
    clips.add(random, spec, random.of(lengths));
  }
  return clips;
}

PackedWaveform packed(const Clips& clips, const float* floats, const std::int16_t* int16s = nullptr) {
  return {floats,
          int16s,
          static_cast<std::int64_t>(clips.samples.size()),
          clips.cu_seqlens.data(),
          clips.cu_frames.data(),
          clips.count(),
          clips.frames()};
}

// One set of parameters and clips; all calls use exactly sized arrays.
class Trial {
 public:
  Trial(Random& random, const LogMelSpec& spec, const Clips& clips)
      : spec_(spec),
        clips_(clips),
        shift_(random.once_in(2) ? 0 : random.between(1, 15)),
        log_mel_(spec_),
        samples_(copied(clips_.samples)),
        grads_(clips_.frames() * spec_.n_mels, shift_) {
    for (std::int64_t i = 0; i < grads_.size(); ++i) grads_[i] = random.uniform(-1.0f, 1.0f);
  }

  std::string name() const {
    return "n_fft " + std::to_string(spec_.n_fft) + ", win " + std::to_string(spec_.win_length) + ", hop " +
           std::to_string(spec_.hop_length) + ", clips " + std::to_string(clips_.count()) + ", frames " +
           std::to_string(clips_.frames()) + ": ";
  }

  // Computes the reference once for all instruction sets. Zeroes the gradients of ill-conditioned mel values.
  void prepare_reference() {
    for (std::int64_t clip = 0; clip < clips_.count(); ++clip) {
      const LogMelReference reference(spec_, samples_.data() + clips_.cu_seqlens[clip], clips_.length(clip));
      Doubles grad(clips_.length(clip)), bound(clips_.length(clip));
      for (std::int64_t i = 0; i < clips_.cu_frames[clip + 1] - clips_.cu_frames[clip]; ++i) {
        const LogMelReference::Frame frame = reference.frame(i);
        float* grads = grads_.data() + (clips_.cu_frames[clip] + i) * spec_.n_mels;
        for (std::int64_t m = 0; m < spec_.n_mels; ++m)
          if (!reference.has_clear_gradient(frame, m)) grads[m] = 0.0f;
        reference.add_gradient(frame, i, grads, grad, bound);
        expected_frames_.push_back(frame);
      }
      reference.finish(grad, bound);
      expected_grad_.insert(expected_grad_.end(), grad.begin(), grad.end());
      grad_bound_.insert(grad_bound_.end(), bound.begin(), bound.end());
    }
    has_reference_ = true;
  }

  void run(Random& random, slap_fast::Isa isa) {
    slap_fast::force_isa(slap_fast::isa_name(isa));
    const ExactArray<float> mels = forward(packed(clips_, samples_.data()), 1);
    const ExactArray<float> grad = backward(packed(clips_, samples_.data()), grads_.data(), 1);
    require_written(mels, "mel values");
    require_written(grad, "gradient");
    if (has_reference_) check_reference(mels, grad);
    for (int threads : kThreadCounts) {
      require_same(mels, forward(packed(clips_, samples_.data()), threads), "mel values change with threads");
      require_same(grad, backward(packed(clips_, samples_.data()), grads_.data(), threads),
                   "gradient changes with threads");
    }
    check_one_by_one(mels, grad);
    check_int16(mels);
    check_patches(random, mels);
    if (samples_.size() > 0) check_bad_sample(random, mels, grad);
  }

 private:
  template <class T>
  ExactArray<T> copied(const std::vector<T>& values) const {
    ExactArray<T> copy(static_cast<std::int64_t>(values.size()), shift_);
    std::copy(values.begin(), values.end(), copy.data());
    return copy;
  }

  ExactArray<float> forward(const PackedWaveform& waveform, int threads) const {
    ExactArray<float> mels = poisoned(waveform.frames * spec_.n_mels, shift_);
    log_mel_.forward(waveform, mels.data(), threads);
    return mels;
  }

  ExactArray<float> backward(const PackedWaveform& waveform, const float* grads, int threads) const {
    ExactArray<float> grad = poisoned(waveform.samples, shift_);
    log_mel_.backward(waveform, grads, grad.data(), threads);
    return grad;
  }

  void require_same(const ExactArray<float>& a, const ExactArray<float>& b, const char* what) const {
    require(a.size() == b.size() && same_bits(a.data(), b.data(), a.size()), name() + what);
  }

  // Here and below, messages are made for failures alone: one for each value would take longer than the kernels.
  void require_written(const ExactArray<float>& values, const std::string& what) const {
    for (std::int64_t i = 0; i < values.size(); ++i)
      if (is_poison(values[i])) require(false, name() + what + " " + std::to_string(i) + " not written");
  }

  void check_reference(const ExactArray<float>& mels, const ExactArray<float>& grad) const {
    const LogMelReference reference(spec_, nullptr, 0);
    for (std::int64_t i = 0; i < mels.size(); ++i)
      if (!reference.agrees(expected_frames_[i / spec_.n_mels], i % spec_.n_mels, mels[i]))
        require(false, name() + "mel value " + std::to_string(i) + " is " + std::to_string(mels[i]));
    for (std::int64_t i = 0; i < grad.size(); ++i)
      if (!(std::fabs(grad[i] - expected_grad_[i]) <= grad_bound_[i]))  // also NaN
        require(false, name() + "gradient " + std::to_string(i) + " is " + std::to_string(grad[i]) + ", not " +
                           std::to_string(expected_grad_[i]));
  }

  void check_one_by_one(const ExactArray<float>& mels, const ExactArray<float>& grad) const {
    for (std::int64_t clip = 0; clip < clips_.count(); ++clip) {
      const std::int64_t begin = clips_.cu_seqlens[clip], first = clips_.cu_frames[clip];
      Clips alone;
      alone.cu_seqlens.push_back(clips_.length(clip));
      alone.cu_frames.push_back(clips_.cu_frames[clip + 1] - first);
      alone.samples.assign(samples_.data() + begin, samples_.data() + begin + clips_.length(clip));
      const ExactArray<float> samples = copied(alone.samples);
      const ExactArray<float> mels_alone = forward(packed(alone, samples.data()), 1);
      require(same_bits(mels_alone.data(), mels.data() + first * spec_.n_mels, mels_alone.size()),
              name() + "mel values of a clip alone differ");
      const ExactArray<float> grad_alone =
          backward(packed(alone, samples.data()), grads_.data() + first * spec_.n_mels, 1);
      require(same_bits(grad_alone.data(), grad.data() + begin, grad_alone.size()),
              name() + "gradient of a clip alone differs");
    }
  }

  // int16 samples give bitwise the same result as float32 samples divided by 32768.
  void check_int16(const ExactArray<float>& mels) const {
    std::vector<std::int16_t> rounded;
    std::vector<float> floats;
    for (float sample : clips_.samples) {
      rounded.push_back(static_cast<std::int16_t>(std::lrint(sample * 32768.0f)));
      floats.push_back(static_cast<float>(rounded.back()) / 32768.0f);
    }
    const ExactArray<std::int16_t> int16s = copied(rounded);
    const ExactArray<float> same = copied(floats);
    require_same(forward(packed(clips_, nullptr, int16s.data()), 3), forward(packed(clips_, same.data()), 3),
                 "16-bit samples give other values");
    require(mels.size() == clips_.frames() * spec_.n_mels, name() + "size");
  }

  void check_patches(Random& random, const ExactArray<float>& mels) const {
    const std::int64_t n_mels = spec_.n_mels;
    std::vector<std::int64_t> divisors;
    for (std::int64_t i = 1; i <= n_mels; ++i)
      if (n_mels % i == 0) divisors.push_back(i);
    PatchLayout layout;
    layout.frames = random.of(Offsets{1, 2, 3, 7, 16, 100});
    layout.mels = random.of(divisors);
    layout.padding = -7.5f;
    layout.mask_value = 0.25f;
    const ExactArray<std::uint8_t> time_masked(clips_.frames(), shift_), mel_masked(clips_.count() * n_mels, shift_);
    for (std::int64_t i = 0; i < time_masked.size(); ++i) time_masked[i] = random.once_in(5);
    for (std::int64_t i = 0; i < mel_masked.size(); ++i) mel_masked[i] = random.once_in(5);
    if (random.once_in(2)) layout.time_masked = time_masked.data();
    if (random.once_in(2)) layout.mel_masked = mel_masked.data();

    const std::int64_t rows = n_mels / layout.mels, area = layout.frames * layout.mels;
    std::vector<float> expected;
    for (std::int64_t clip = 0; clip < clips_.count(); ++clip) {
      const std::int64_t end = clips_.cu_frames[clip + 1];
      for (std::int64_t first = clips_.cu_frames[clip]; first < end; first += layout.frames) {
        for (std::int64_t row = 0; row < rows; ++row) {
          for (std::int64_t i = 0; i < area; ++i) {
            const std::int64_t frame = first + i / layout.mels, mel = row * layout.mels + i % layout.mels;
            const bool masked = frame < end && ((layout.time_masked && layout.time_masked[frame]) ||
                                                (layout.mel_masked && layout.mel_masked[clip * n_mels + mel]));
            expected.push_back(frame >= end ? layout.padding : masked ? layout.mask_value : mels[frame * n_mels + mel]);
          }
        }
      }
    }
    const std::int64_t tokens = static_cast<std::int64_t>(expected.size()) / area;
    for (int threads : kThreadCounts) {
      const ExactArray<float> patches = poisoned(tokens * area, shift_);
      log_mel_.patches(packed(clips_, samples_.data()), layout, patches.data(), tokens, threads);
      require(same_bits(patches.data(), expected.data(), patches.size()), name() + "patches differ from frames");
    }
    for (std::int64_t wrong : {tokens - 1, tokens + 1, std::int64_t{-1}})
      require_rejected("number of tokens",
                       [&] { log_mel_.patches(packed(clips_, samples_.data()), layout, nullptr, wrong, 1); });
  }

  // A non-finite sample affects only the frames that contain it and the gradients of these frames' samples.
  void check_bad_sample(Random& random, const ExactArray<float>& mels, const ExactArray<float>& grad) const {
    const std::int64_t bad_index = random.between(0, samples_.size() - 1);
    const ExactArray<float> samples = copied(clips_.samples);
    const float inf = std::numeric_limits<float>::infinity();
    const float bad = random.of(std::vector<float>{std::nanf(""), -std::nanf(""), inf, -inf});
    samples[bad_index] = bad;
    const ExactArray<float> tainted = forward(packed(clips_, samples.data()), 3);
    const ExactArray<float> tainted_grad = backward(packed(clips_, samples.data()), grads_.data(), 3);
    require_written(tainted, "mel values with non-finite samples");
    require_written(tainted_grad, "gradient with non-finite samples");
    for (std::int64_t clip = 0; clip < clips_.count(); ++clip) {
      const std::int64_t begin = clips_.cu_seqlens[clip];
      const LogMelReference reference(spec_, samples_.data() + begin, clips_.length(clip));
      // With preemphasis over the clip, the next sample is affected too.
      const auto holds_bad = [&](std::int64_t frame) {
        bool holds = false;
        for (std::int64_t i = 0; i < spec_.win_length && !holds; ++i) {
          const std::int64_t from = reference.source(reference.start(frame) + i);
          holds = from >= 0 && (begin + from == bad_index ||
                                (spec_.preemphasis_over_clip && from > 0 && begin + from == bad_index + 1));
        }
        return holds;
      };
      std::vector<bool> is_reached(static_cast<std::size_t>(clips_.length(clip)) + 1);
      for (std::int64_t i = 0; i < clips_.cu_frames[clip + 1] - clips_.cu_frames[clip]; ++i) {
        const std::int64_t first = (clips_.cu_frames[clip] + i) * spec_.n_mels;
        if (holds_bad(i)) {
          for (std::int64_t m = 0; m < spec_.n_mels && std::isnan(bad); ++m)
            if (!std::isnan(tainted[first + m])) require(false, name() + "NaN does not propagate to its frame");
          for (std::int64_t j = 0; j < spec_.win_length; ++j)
            if (const std::int64_t from = reference.source(reference.start(i) + j); from >= 0) is_reached[from] = true;
        } else {
          require(same_bits(&tainted[first], &mels[first], spec_.n_mels),
                  name() + "a non-finite sample affects other frames");
        }
      }
      for (std::int64_t i = 0; i < clips_.length(clip); ++i)
        if (!is_reached[i] && !(spec_.preemphasis_over_clip && is_reached[i + 1]) &&
            !same_bits(&tainted_grad[begin + i], &grad[begin + i], 1))
          require(false, name() + "a non-finite sample affects the gradient of other frames");
    }
  }

  LogMelSpec spec_;
  Clips clips_;
  std::int64_t shift_;
  LogMel log_mel_;
  ExactArray<float> samples_, grads_;
  bool has_reference_ = false;
  std::vector<LogMelReference::Frame> expected_frames_;
  Doubles expected_grad_, grad_bound_;
};

LogMelSpec small_spec() {
  LogMelSpec spec;
  spec.n_fft = 8;
  spec.win_length = 6;
  spec.hop_length = 2;
  spec.n_mels = 2;
  spec.log_floor = 1e-7f;
  spec.window.assign(6, 1.0f);
  spec.filters.assign(10, 1.0f);
  return spec;
}

void check_invalid_specs() {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max(), kMin = -kMax - 1;
  std::int64_t LogMelSpec::* const sizes[] = {&LogMelSpec::n_fft, &LogMelSpec::win_length, &LogMelSpec::hop_length,
                                              &LogMelSpec::n_mels};
  for (const auto size : sizes) {
    for (std::int64_t value : {std::int64_t{0}, std::int64_t{-1}, (std::int64_t{1} << 24) + 1, kMax, kMin}) {
      LogMelSpec spec = small_spec();
      spec.*size = value;
      require_rejected("a size of " + std::to_string(value), [&] { LogMel{spec}; });
    }
  }
  for (std::int64_t first : {kMax, kMin, std::int64_t{1} << 40}) {
    LogMelSpec spec = small_spec();
    spec.first_sample = first;
    require_rejected("first_sample " + std::to_string(first), [&] { LogMel{spec}; });
  }
  for (std::size_t size : {0, 5, 7}) {
    LogMelSpec spec = small_spec();
    spec.window.resize(size);
    require_rejected("a window of the wrong size", [&] { LogMel{spec}; });
  }
  for (std::size_t size : {0, 9, 11}) {
    LogMelSpec spec = small_spec();
    spec.filters.resize(size);
    require_rejected("filters of the wrong size", [&] { LogMel{spec}; });
  }
  LogMelSpec spec = small_spec();
  spec.n_fft = 5;
  spec.filters.assign(6, 1.0f);
  require_rejected("a window longer than n_fft", [&] { LogMel{spec}; });
}

void check_invalid_calls() {
  const LogMel log_mel(small_spec());
  const ExactArray<float> samples(10, 0), mels(6, 0);
  const std::vector<std::int16_t> int16s(10);
  for (std::int64_t i = 0; i < 10; ++i) samples[i] = 1.0f;
  constexpr std::int64_t kInt64Max = std::numeric_limits<std::int64_t>::max();
  const auto require_rejected_offsets = [&](const Offsets& cu_seqlens, const Offsets& cu_frames, std::int64_t clips,
                                            std::int64_t frames) {
    const PackedWaveform waveform{samples.data(), nullptr, 10, cu_seqlens.data(), cu_frames.data(), clips, frames};
    const PatchLayout layout{1, 2, 0.0f, 0.0f, nullptr, nullptr};
    require_rejected("malformed offsets", [&] { log_mel.forward(waveform, mels.data(), 2); });
    require_rejected("malformed offsets", [&] { log_mel.backward(waveform, mels.data(), samples.data(), 2); });
    require_rejected("malformed offsets", [&] { log_mel.patches(waveform, layout, mels.data(), frames, 2); });
  };
  for (const Offsets& wrong : {Offsets{1, 4, 10},
                               {0, 4, 9},
                               {0, 4, 11},
                               {0, 11, 10},
                               {0, -1, 10},
                               {0, kInt64Max, 10},
                               {-kInt64Max, 4, 10},
                               {0, 4, kInt64Max}})
    require_rejected_offsets(wrong, {0, 1, 3}, 2, 3);
  for (const Offsets& wrong : {Offsets{1, 1, 3},
                               {0, 1, 2},
                               {0, 1, 4},
                               {0, 4, 3},
                               {0, -1, 3},
                               {0, kInt64Max, 3},
                               {-kInt64Max, 1, 3},
                               {0, 1, kInt64Max}})
    require_rejected_offsets({0, 4, 10}, wrong, 2, 3);
  require_rejected_offsets({0, 4, 10}, {0, 1, kInt64Max}, 2, kInt64Max);  // positions would overflow
  require_rejected_offsets({0, 4, 10}, {0, 1, 3}, -1, 3);
  require_rejected_offsets({0, 4, 10}, {0, 1, -3}, 2, -3);

  const Offsets cu_seqlens{0, 10}, cu_frames{0, 3};
  const PackedWaveform waveform{samples.data(), nullptr, 10, cu_seqlens.data(), cu_frames.data(), 1, 3};
  PackedWaveform of_int16s = waveform;
  of_int16s.floats = nullptr;
  of_int16s.int16s = int16s.data();
  require_rejected("a gradient of 16-bit samples", [&] { log_mel.backward(of_int16s, mels.data(), nullptr, 1); });
  for (const auto& [frames, patch_mels] : {std::pair<std::int64_t, std::int64_t>{0, 2},
                                           {-1, 2},
                                           {4097, 2},
                                           {kInt64Max, 2},
                                           {1, 0},
                                           {1, -1},
                                           {1, 3},
                                           {1, kInt64Max}}) {
    const PatchLayout layout{frames, patch_mels, 0.0f, 0.0f, nullptr, nullptr};
    require_rejected("a patch layout", [&] { log_mel.patches(waveform, layout, mels.data(), 3, 1); });
  }
}

}  // namespace

void test_log_mel() {
  Random random(11);
  std::vector<slap_fast::Isa> isas = isas_of_this_machine();
  if (isas.back() == slap_fast::Isa::avx512_bf16) isas.pop_back();  // runs the avx512 code
  struct Kind {
    int trials;
    std::int64_t max_n_fft, frames;
    bool has_reference;
  };
  // Many small specs, some large ones, and enough frames to be split into tasks and segments.
  for (const Kind& kind : {Kind{100, 64, 40, true},
                           {30, 16, 400, true},
                           {20, 1024, 4, true},
                           {12, 600, 150, false},
                           {6, 40, 3000, false}}) {
    for (int i = 0; i < kind.trials; ++i) {
      const LogMelSpec spec = random_spec(random, kind.max_n_fft);
      Trial trial(random, spec, random_clips(random, spec, kind.frames));
      if (kind.has_reference) trial.prepare_reference();
      for (slap_fast::Isa isa : isas) trial.run(random, isa);
    }
  }
  // Reflections longer than the usual segments of the backward pass.
  for (int i = 0; i < 8; ++i) {
    LogMelSpec spec = random_spec(random, 16);
    spec.hop_length = 1;
    spec.first_sample = -random.between(140, 150);
    spec.padding = i % 2 ? slap_fast::Padding::reflect : slap_fast::Padding::kaldi;
    Clips clips;
    for (std::int64_t factor : {2, 2, 3}) clips.add(random, spec, factor * (random.between(0, 3) - spec.first_sample));
    Trial trial(random, spec, clips);
    trial.prepare_reference();
    for (slap_fast::Isa isa : isas) trial.run(random, isa);
  }
  check_invalid_specs();
  check_invalid_calls();
}

}  // namespace testing
