#include "cuda/log_mel_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/log_mel_fft_sizes.h"

namespace slap_fast::cuda {
namespace {

constexpr std::int64_t kMaxSize = 1 << 16;
// Shared memory that allows two blocks per SM on A100 and H100, to hide barriers.
constexpr std::int64_t kPreferredBytes = 80 * 1024;
constexpr std::int64_t kMaxOwned = 8192, kMinOwned = 256;

void check(const LogMelSpec& spec) {
  const auto require = [](bool holds, const char* what, std::int64_t value) {
    if (!holds) throw std::invalid_argument(std::string("log-mel spec: ") + what + " is " + std::to_string(value));
  };
  require(spec.n_fft >= 1 && spec.n_fft <= kMaxSize, "n_fft", spec.n_fft);
  require(spec.win_length >= 1 && spec.win_length <= spec.n_fft, "win_length", spec.win_length);
  require(spec.hop_length >= 1 && spec.hop_length <= std::numeric_limits<std::int32_t>::max(), "hop_length",
          spec.hop_length);
  require(spec.n_mels >= 1 && spec.n_mels <= kMaxSize, "n_mels", spec.n_mels);
  const auto window = static_cast<std::int64_t>(spec.window.size());
  require(window == spec.win_length, "the size of window", window);
  const auto filters = static_cast<std::int64_t>(spec.filters.size());
  require(filters == spec.n_mels * (spec.n_fft / 2 + 1), "the size of filters", filters);
}

Complex root_of_unity(std::int64_t turn, std::int64_t n) {
  const double angle = -2.0 * 3.14159265358979323846 * static_cast<double>(turn % n) / static_cast<double>(n);
  return {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
}

// Smallest pitch >= min_pitch without bank conflicts between `lanes` frames and 32 / lanes adjacent words. Short rows
// are only made odd, since padding many of them would cost too much memory.
int conflict_free(int min_pitch, int lanes) {
  return min_pitch < 32 || lanes == 1 ? min_pitch | 1 : min_pitch + ((32 / lanes - min_pitch) % 32 + 32) % 32;
}

LogMelSizes common_sizes(const LogMelSpec& spec) {
  LogMelSizes sizes{};
  sizes.n_fft = static_cast<int>(spec.n_fft);
  sizes.win_length = static_cast<int>(spec.win_length);
  sizes.n_mels = static_cast<int>(spec.n_mels);
  sizes.hop_length = spec.hop_length;
  sizes.first_sample = spec.first_sample;
  sizes.padding = spec.padding;
  sizes.input_scale = spec.input_scale;
  (spec.preemphasis_over_clip ? sizes.clip_preemphasis : sizes.frame_preemphasis) = spec.preemphasis;
  sizes.remove_dc_offset = spec.remove_dc_offset;
  sizes.magnitude = spec.magnitude;
  sizes.logarithm = spec.logarithm;
  sizes.power_guard = spec.power_guard;
  sizes.log_floor = spec.log_floor;
  sizes.log_guard = spec.log_guard;
  sizes.log_scale = spec.log_scale;
  sizes.log_shift = spec.log_shift;
  sizes.row_length = static_cast<int>(std::min(spec.hop_length, spec.win_length));
  sizes.overlap = (sizes.win_length + sizes.row_length - 1) / sizes.row_length;
  return sizes;
}

// Samples per backward block, such that its overlapping frames fill whole tiles.
std::int64_t owned_samples(const LogMelSizes& sizes) {
  const std::int64_t tile = sizes.frames * sizes.hop_length;
  std::int64_t owned = tile - sizes.win_length + 1;
  for (std::int64_t tiles = 2; owned * 10 < (tiles - 1) * tile * 7 && tiles * tile <= kMaxOwned; ++tiles)
    owned = tiles * tile - sizes.win_length + 1;
  return std::clamp(owned, kMinOwned, kMaxOwned) - (sizes.clip_preemphasis != 0.0f);
}

template <class Transform>
void set_layout(LogMelSizes& sizes, bool backward, std::int64_t shared_bytes) {
  sizes.threads = Transform::kThreads;
  sizes.rows = sizes.frames + sizes.overlap - 1;
  sizes.pitch = conflict_free(sizes.row_length, sizes.frames);
  sizes.mel_pitch = conflict_free(sizes.n_mels, sizes.frames);
  sizes.spectrum = 0;
  sizes.samples = Transform::spectrum_words(sizes) * sizes.frames;
  sizes.partials = sizes.samples + std::max(sizes.rows * sizes.pitch, sizes.frames * sizes.mel_pitch);
  sizes.mean = sizes.partials + (sizes.remove_dc_offset ? sizes.threads : 0);
  sizes.head = sizes.mean + sizes.frames;
  sizes.tail = sizes.head + sizes.frames;
  sizes.owned_gradient = sizes.tail + sizes.frames;
  sizes.shared_floats = sizes.owned_gradient;
  if (!backward) return;
  const std::int64_t left = shared_bytes / static_cast<std::int64_t>(sizeof(float)) - sizes.owned_gradient - 1;
  sizes.owned = std::max(std::min(owned_samples(sizes), left), kMinOwned);
  sizes.shared_floats += static_cast<int>(sizes.owned) + 1;
}

std::int64_t bytes(const LogMelSizes& sizes) { return sizes.shared_floats * static_cast<std::int64_t>(sizeof(float)); }

bool plan_register_transform(LogMelPlan& plan, bool backward, std::int64_t shared_bytes) {
  visit_register_transform(plan.sizes.n_fft, [&](auto transform) {
    using Transform = decltype(transform);
    LogMelSizes sizes = plan.sizes;
    sizes.steps = Transform::kSteps;
    sizes.columns = Transform::kColumns;
    sizes.frames = Transform::kFrames;
    set_layout<Transform>(sizes, backward, shared_bytes);
    plan.in_registers = bytes(sizes) <= shared_bytes;
    if (plan.in_registers) plan.sizes = sizes;
  });
  return plan.in_registers;
}

bool plan_loop_transform(LogMelPlan& plan, bool backward, std::int64_t shared_bytes) {
  LogMelSizes& sizes = plan.sizes;
  sizes.steps = static_cast<int>(std::ceil(std::sqrt(static_cast<double>(sizes.n_fft))));
  while (sizes.n_fft % sizes.steps) ++sizes.steps;
  sizes.columns = sizes.n_fft / sizes.steps;
  for (sizes.frames = 32; sizes.frames >= 1; sizes.frames /= 2) {
    set_layout<LoopTransform>(sizes, backward, shared_bytes);
    if (bytes(sizes) <= (sizes.frames > 1 ? std::min(kPreferredBytes, shared_bytes) : shared_bytes)) return true;
  }
  return false;
}

void make_taps(LogMelPlan& plan, const LogMelSpec& spec) {
  const LogMelSizes& sizes = plan.sizes;
  for (int column = 0; column < sizes.columns; ++column)
    for (int step = 0; step < sizes.steps; ++step) {
      const int n = step * sizes.columns + column;
      plan.taps.push_back(n < sizes.win_length
                              ? Tap{n / sizes.row_length * sizes.pitch + n % sizes.row_length, spec.window[n]}
                              : Tap{0, 0.0f});
    }
}

void make_roots(LogMelPlan& plan) {
  const LogMelSizes& sizes = plan.sizes;
  if (!plan.in_registers) {
    for (int turn = 0; turn < sizes.n_fft; ++turn) plan.roots.push_back(root_of_unity(turn, sizes.n_fft));
    return;
  }
  for (int row = 0; row <= sizes.steps / 2; ++row)
    for (int column = 0; column < sizes.columns; ++column)
      plan.roots.push_back(root_of_unity(row * column, sizes.n_fft));
}

template <class Transform>
void make_filters(LogMelPlan& plan, const LogMelSpec& spec) {
  const LogMelSizes& sizes = plan.sizes;
  const int bins = sizes.n_fft / 2 + 1;
  const auto weight = [&](int mel, int bin) { return spec.filters[static_cast<std::size_t>(mel) * bins + bin]; };
  for (int mel = 0; mel < sizes.n_mels; ++mel) {
    plan.mel_begin.push_back(static_cast<int>(plan.mel_weights.size()));
    for (int bin = 0; bin < bins; ++bin) {
      if (weight(mel, bin) == 0.0f) continue;
      const auto words = Transform::bin_words(sizes, bin);
      plan.mel_weights.push_back({words.real, weight(mel, bin)});
      plan.spectrum_weights.push_back({words.real, words.imag, weight(mel, bin), 0});
    }
  }
  plan.mel_begin.push_back(static_cast<int>(plan.mel_weights.size()));
  for (int bin = 0; bin < bins; ++bin) {
    plan.bin_begin.push_back(static_cast<int>(plan.bin_weights.size()));
    for (int mel = 0; mel < sizes.n_mels; ++mel)
      if (weight(mel, bin) != 0.0f) plan.bin_weights.push_back({mel, weight(mel, bin)});
  }
  plan.bin_begin.push_back(static_cast<int>(plan.bin_weights.size()));
}

}  // namespace

LogMelPlan plan_log_mel(const LogMelSpec& spec, bool backward, std::int64_t shared_bytes) {
  check(spec);
  LogMelPlan plan;
  plan.sizes = common_sizes(spec);
  if (!plan_register_transform(plan, backward, shared_bytes) && !plan_loop_transform(plan, backward, shared_bytes))
    throw std::invalid_argument("n_fft " + std::to_string(spec.n_fft) + " with hop_length " +
                                std::to_string(spec.hop_length) + " does not fit into the " +
                                std::to_string(shared_bytes) + " bytes of shared memory of a block");
  make_taps(plan, spec);
  make_roots(plan);
  const bool compiled = plan.in_registers && visit_register_transform(plan.sizes.n_fft, [&](auto transform) {
                          make_filters<decltype(transform)>(plan, spec);
                        });
  if (!compiled) make_filters<LoopTransform>(plan, spec);
  return plan;
}

}  // namespace slap_fast::cuda
