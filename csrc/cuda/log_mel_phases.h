// Phases of a forward or backward block, separated by barriers.
//
// The code runs on a GPU and, thread by thread, on a CPU (tests): run(phase) calls phase(t) for every thread t of the
// block and returns when all are done. Within a phase, no thread reads what another thread writes.
#pragma once

#include <cmath>
#include <cstdint>

#include "log_mel_plan.h"
#include "log_mel_transforms.h"

namespace slap_fast::cuda {

struct LogMelInput {
  const float* floats;         // [samples]; null if they are int16
  const std::int16_t* int16s;  // [samples]; null if they are float32
  std::int64_t samples;
  const std::int64_t* cu_seqlens;  // [clips + 1]
  const std::int64_t* cu_frames;   // [clips + 1]
  std::int64_t clips;
  std::int64_t frames;
};

struct LogMelClip {
  std::int64_t begin, length;  // samples
  std::int64_t first_frame, frames;
};

SLAP_FAST_DEVICE std::int64_t clamped(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value < low ? low : value > high ? high : value;
}

SLAP_FAST_DEVICE std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0); }

// Clamps the clip to the arrays, so that invalid offsets cannot cause out-of-bounds access.
SLAP_FAST_DEVICE LogMelClip clip_of(const LogMelInput& input, std::int64_t index) {
  LogMelClip clip;
  clip.begin = clamped(input.cu_seqlens[index], 0, input.samples);
  clip.length = clamped(input.cu_seqlens[index + 1], clip.begin, input.samples) - clip.begin;
  clip.first_frame = clamped(input.cu_frames[index], 0, input.frames);
  clip.frames = clamped(input.cu_frames[index + 1], clip.first_frame, input.frames) - clip.first_frame;
  return clip;
}

// Clip c starts at tile offsets[c] / tile + c, which reserves at least as many tiles as the clip needs. The grid size,
// total / tile + clips, does not depend on the offsets, which are in device memory.
SLAP_FAST_DEVICE std::int64_t clip_of_tile(const std::int64_t* offsets, std::int64_t clips, std::int64_t total,
                                           std::int64_t tile, std::int64_t index) {
  std::int64_t low = 0, high = clips - 1;
  while (low < high) {
    const std::int64_t middle = low + (high - low + 1) / 2;
    if (clamped(offsets[middle], 0, total) / tile + middle <= index)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

SLAP_FAST_DEVICE std::int64_t first_tile(const std::int64_t* offsets, std::int64_t clip, std::int64_t total,
                                         std::int64_t tile) {
  return clamped(offsets[clip], 0, total) / tile + clip;
}

// Period of the infinitely padded clip.
SLAP_FAST_DEVICE std::int64_t padding_period(Padding padding, std::int64_t length) {
  return length <= 1 ? 1 : padding == Padding::reflect ? 2 * (length - 1) : 2 * length;
}

// position + source index, constant in the mirrored half of the first period.
SLAP_FAST_DEVICE std::int64_t mirror_sum(Padding padding, std::int64_t length) {
  return padding == Padding::reflect ? 2 * (length - 1) : 2 * length - 1;
}

// Index of the sample at a padded position; -1: zero.
SLAP_FAST_DEVICE std::int64_t source_of(std::int64_t position, std::int64_t length, Padding padding) {
  if (position >= 0 && position < length) return position;
  if (padding == Padding::zeros || length <= 0) return -1;
  const std::int64_t period = padding_period(padding, length);
  const std::int64_t phase = position - floor_div(position, period) * period;
  return phase < length ? phase : mirror_sum(padding, length) - phase;
}

SLAP_FAST_DEVICE float read_sample(const LogMelSizes& sizes, const LogMelInput& input, std::int64_t index) {
  return input.floats ? input.floats[index] * sizes.input_scale
                      : static_cast<float>(input.int16s[index]) * (sizes.input_scale / 32768.0f);
}

// Sample of the padded clip, with preemphasis over the clip applied.
SLAP_FAST_DEVICE float padded_sample(const LogMelSizes& sizes, const LogMelInput& input, const LogMelClip& clip,
                                     std::int64_t position) {
  const std::int64_t source = source_of(position, clip.length, sizes.padding);
  if (source < 0) return 0.0f;
  const float x = read_sample(sizes, input, clip.begin + source);
  if (sizes.clip_preemphasis == 0.0f || source == 0) return x;
  return x - sizes.clip_preemphasis * read_sample(sizes, input, clip.begin + source - 1);
}

// Frames [first, first + count) of a clip; count <= frames per block.
struct FrameTile {
  std::int64_t first;
  int count;
  SLAP_FAST_DEVICE std::int64_t start(const LogMelSizes& sizes) const {
    return sizes.first_sample + first * sizes.hop_length;
  }
  SLAP_FAST_DEVICE int rows(const LogMelSizes& sizes) const { return count + sizes.overlap - 1; }
};

// Stages a row inside the clip, by one warp. Unrolling int16 by 4 would raise the register count of LoopTransform and
// cost a quarter of its blocks.
template <class Sample>
SLAP_FAST_DEVICE void stage_row(const Sample* in, float scale, float preemphasis, int length, int lane, float* out) {
#if defined(__CUDACC__)
#pragma unroll(sizeof(Sample) == sizeof(float) ? 4 : 2)
#endif
  for (int i = lane; i < length; i += 32)
    out[i] = in[i] * scale - (preemphasis == 0.0f ? 0.0f : preemphasis * (in[i - 1] * scale));
}

// Stages rows of preemphasized samples. `head` is the preemphasized first sample of each frame, which has no
// predecessor in its frame; `tail` completes a frame's sum of preemphasized samples to (1 - p) times the sum before
// preemphasis.
template <class Transform>
SLAP_FAST_DEVICE void stage_samples(const LogMelBlock& block, const LogMelInput& input, const LogMelClip& clip,
                                    const FrameTile& tile, int t) {
  const LogMelSizes& sizes = block.sizes;
  const float p = sizes.frame_preemphasis;
  const std::int64_t start = tile.start(sizes);
  const int used = tile.rows(sizes);
  const bool inside = start >= 1 && sizes.clip_preemphasis == 0.0f &&
                      start + (used - 1) * sizes.hop_length + sizes.row_length <= clip.length;
  for (int row = t / 32; row < sizes.rows; row += Transform::kThreads / 32) {
    float* out = block.shared + sizes.samples + row * sizes.pitch;
    const std::int64_t position = start + row * sizes.hop_length;
    if (row >= used) {
      for (int i = t % 32; i < sizes.row_length; i += 32) out[i] = 0.0f;
    } else if (inside) {
      const std::int64_t first = clip.begin + position;
      if (input.floats)
        stage_row(input.floats + first, sizes.input_scale, p, sizes.row_length, t % 32, out);
      else
        stage_row(input.int16s + first, sizes.input_scale / 32768.0f, p, sizes.row_length, t % 32, out);
    } else {
      for (int i = t % 32; i < sizes.row_length; i += 32) {
        const float previous = p == 0.0f ? 0.0f : padded_sample(sizes, input, clip, position + i - 1);
        out[i] = padded_sample(sizes, input, clip, position + i) - p * previous;
      }
    }
  }
  if (t < Transform::frames(sizes)) {
    const std::int64_t position = start + t * sizes.hop_length;
    const bool real = t < tile.count;
    const float head = real ? padded_sample(sizes, input, clip, position) : 0.0f;
    const float last = real ? padded_sample(sizes, input, clip, position + sizes.win_length - 1) : 0.0f;
    block.shared[sizes.head + t] = head - p * head;
    block.shared[sizes.tail + t] = p == 0.0f ? 0.0f : p * (head - last);
  }
}

// Per-thread partial sum of a frame's samples; sum_gradients: of their gradients.
template <class Transform>
SLAP_FAST_DEVICE void sum_samples(const LogMelBlock& block, int t) {
  const LogMelSizes& sizes = block.sizes;
  const int frame = t % Transform::frames(sizes), slot = t / Transform::frames(sizes);
  const float* samples = block.shared + sizes.samples + frame * sizes.pitch;
  float sum = slot == 0 ? block.shared[sizes.head + frame] : 0.0f;
  int left = sizes.win_length;
  for (int row = 0; row < sizes.overlap; ++row, left -= sizes.row_length, samples += sizes.pitch) {
    const int end = left < sizes.row_length ? left : sizes.row_length;
    SLAP_FAST_UNROLL_4
    for (int i = row == 0 && slot == 0 ? Transform::slots(sizes) : slot; i < end; i += Transform::slots(sizes))
      sum += samples[i];
  }
  block.shared[sizes.partials + t] = sum;
}

template <class Transform>
SLAP_FAST_DEVICE void sum_gradients(const LogMelBlock& block, int t) {
  const LogMelSizes& sizes = block.sizes;
  const int frames = Transform::frames(sizes), slot = t / frames;
  const float* gradients = block.shared + sizes.spectrum + Transform::gradient_word(sizes) * frames + t % frames;
  float sum = 0.0f;
  SLAP_FAST_UNROLL_4
  for (int n = slot; n < sizes.win_length; n += Transform::slots(sizes)) sum += gradients[n * frames];
  block.shared[sizes.partials + t] = sum;
}

// mean = scale * (sum of the partials + tail if add_tail) / win_length
template <class Transform>
SLAP_FAST_DEVICE void finish_mean(const LogMelBlock& block, bool add_tail, float scale, int t) {
  const LogMelSizes& sizes = block.sizes;
  const int frames = Transform::frames(sizes);
  if (t >= frames) return;
  float sum = add_tail ? block.shared[sizes.tail + t] : 0.0f;
  SLAP_FAST_UNROLL_4
  for (int slot = 0; slot < Transform::slots(sizes); ++slot) sum += block.shared[sizes.partials + slot * frames + t];
  block.shared[sizes.mean + t] = scale * (sum / static_cast<float>(sizes.win_length));
}

SLAP_FAST_DEVICE float logarithm(float value) {
#if defined(__CUDA_ARCH__)
  return __logf(value);  // absolute error below 1e-5: the argument is a normal number
#else
  return std::log(value);
#endif
}

// Mel values overwrite the samples.
template <class Transform>
SLAP_FAST_DEVICE void mel_values(const LogMelBlock& block, int t) {
  const LogMelSizes& sizes = block.sizes;
  const LogMelTables& tables = block.tables;
  const int frame = t % Transform::frames(sizes);
  const float* powers = block.shared + sizes.spectrum + frame;
  for (int mel = t / Transform::frames(sizes); mel < sizes.n_mels; mel += Transform::slots(sizes)) {
    const int end = tables.mel_begin[mel + 1];
    float value = 0.0f;
    SLAP_FAST_UNROLL_4
    for (int i = tables.mel_begin[mel]; i < end; ++i) {
      const MelWeight entry = tables.mel_weights[i];
      value += entry.weight * powers[entry.word];
    }
    value = (value < sizes.log_floor ? sizes.log_floor : value) + sizes.log_guard;  // NaN propagates
    if (sizes.logarithm) value = logarithm(value);
    block.shared[sizes.samples + frame * sizes.mel_pitch + mel] = value * sizes.log_scale + sizes.log_shift;
  }
}

template <class Transform>
SLAP_FAST_DEVICE void store_mels(const LogMelBlock& block, const LogMelClip& clip, const FrameTile& tile, float* output,
                                 int t) {
  const LogMelSizes& sizes = block.sizes;
  for (int frame = t / 32; frame < tile.count; frame += Transform::kThreads / 32) {
    const float* mels = block.shared + sizes.samples + frame * sizes.mel_pitch;
    float* out = output + (clip.first_frame + tile.first + frame) * sizes.n_mels;
    for (int mel = t % 32; mel < sizes.n_mels; mel += 32) out[mel] = mels[mel];
  }
}

template <class Transform>
SLAP_FAST_DEVICE void load_mel_gradients(const LogMelBlock& block, const LogMelClip& clip, const FrameTile& tile,
                                         const float* grad, int t) {
  const LogMelSizes& sizes = block.sizes;
  for (int frame = t / 32; frame < Transform::frames(sizes); frame += Transform::kThreads / 32) {
    float* mels = block.shared + sizes.samples + frame * sizes.mel_pitch;
    const float* in = grad + (clip.first_frame + tile.first + frame) * sizes.n_mels;
    for (int mel = t % 32; mel < sizes.n_mels; mel += 32) mels[mel] = frame < tile.count ? in[mel] : 0.0f;
  }
}

// Gradients of log-mel values to those of the filter outputs, in place; zero at or below log_floor.
template <class Transform>
SLAP_FAST_DEVICE void mel_gradients(const LogMelBlock& block, int t) {
  const LogMelSizes& sizes = block.sizes;
  const LogMelTables& tables = block.tables;
  const int frame = t % Transform::frames(sizes);
  const float* spectrum = block.shared + sizes.spectrum + frame;
  for (int mel = t / Transform::frames(sizes); mel < sizes.n_mels; mel += Transform::slots(sizes)) {
    const int end = tables.mel_begin[mel + 1];
    float value = 0.0f;
    SLAP_FAST_UNROLL_4
    for (int i = tables.mel_begin[mel]; i < end; ++i) {
      const SpectrumWeight entry = tables.spectrum_weights[i];
      const float im = entry.imag_word == entry.real_word ? 0.0f : spectrum[entry.imag_word];
      value += entry.weight * energy(sizes, spectrum[entry.real_word], im);
    }
    float* grad = block.shared + sizes.samples + frame * sizes.mel_pitch + mel;
    const float slope = sizes.logarithm ? sizes.log_scale / (value + sizes.log_guard) : sizes.log_scale;
    *grad = value > sizes.log_floor ? *grad * slope : 0.0f;
  }
}

// Overlap-add: gradients of the tile's padded samples, summed over frames in ascending order; overwrites the staged
// samples.
template <class Transform>
SLAP_FAST_DEVICE void overlap_gradients(const LogMelBlock& block, const FrameTile& tile, int t) {
  const LogMelSizes& sizes = block.sizes;
  const int frames = Transform::frames(sizes);
  const float p = sizes.frame_preemphasis;
  const float* gradients = block.shared + sizes.spectrum + Transform::gradient_word(sizes) * frames;
  const int used = tile.rows(sizes);
  for (int row = t % frames; row < used; row += frames) {
    for (int i = t / frames; i < sizes.row_length; i += Transform::slots(sizes)) {
      float sum = 0.0f;
      for (int reach = sizes.overlap - 1; reach >= 0; --reach) {
        const int frame = row - reach, n = reach * sizes.row_length + i;
        if (frame < 0 || frame >= tile.count || n >= sizes.win_length) continue;
        const float* frame_gradients = gradients + n * frames + frame;
        float grad = frame_gradients[0];
        if (p != 0.0f) {
          if (n == 0) grad -= p * frame_gradients[0];
          if (n + 1 < sizes.win_length) grad -= p * frame_gradients[frames];
        }
        sum += grad - frame_mean(block, frame);
      }
      block.shared[sizes.samples + row * sizes.pitch + i] = sum;
    }
  }
}

// Image of samples [first, last) in the padded clip: sample s is at offset + s, or at offset - s if mirrored.
struct Image {
  std::int64_t first, last, offset;
  bool mirrored;
  SLAP_FAST_DEVICE std::int64_t begin() const { return mirrored ? offset - last + 1 : offset + first; }
  SLAP_FAST_DEVICE std::int64_t end() const { return mirrored ? offset - first + 1 : offset + last; }
};

template <class Transform>
SLAP_FAST_DEVICE void collect_gradients(const LogMelBlock& block, const FrameTile& tile, const Image& image,
                                        std::int64_t owned, int t) {
  const LogMelSizes& sizes = block.sizes;
  for (int row = t / 32; row < tile.rows(sizes); row += Transform::kThreads / 32) {
    const float* gradients = block.shared + sizes.samples + row * sizes.pitch;
    const std::int64_t start = tile.start(sizes) + row * sizes.hop_length;
    for (int i = t % 32; i < sizes.row_length; i += 32) {
      const std::int64_t source = image.mirrored ? image.offset - (start + i) : start + i - image.offset;
      if (source < image.first || source >= image.last) continue;
      block.shared[sizes.owned_gradient + static_cast<int>(source - owned)] += gradients[i];
    }
  }
}

// Stages the samples of a tile and transforms its columns.
template <class Transform, bool KeepSpectrum, class Run>
SLAP_FAST_DEVICE void transform_tile(const LogMelBlock& block, const LogMelInput& input, const LogMelClip& clip,
                                     const FrameTile& tile, Run& run) {
  run([&](int t) { stage_samples<Transform>(block, input, clip, tile, t); });
  if (block.sizes.remove_dc_offset) {
    run([&](int t) { sum_samples<Transform>(block, t); });
    run([&](int t) { finish_mean<Transform>(block, true, 1.0f, t); });
  }
  run([&](int t) { Transform::columns(block, t); });
}

template <class Transform, class Run>
SLAP_FAST_DEVICE void forward_block(const LogMelBlock& block, const LogMelInput& input, float* output,
                                    std::int64_t index, Run& run) {
  const LogMelSizes& sizes = block.sizes;
  const int frames = Transform::frames(sizes);
  const std::int64_t c = clip_of_tile(input.cu_frames, input.clips, input.frames, frames, index);
  const LogMelClip clip = clip_of(input, c);
  FrameTile tile{(index - first_tile(input.cu_frames, c, input.frames, frames)) * frames, frames};
  if (tile.first < 0 || tile.first >= clip.frames) return;
  if (clip.frames - tile.first < frames) tile.count = static_cast<int>(clip.frames - tile.first);
  transform_tile<Transform, false>(block, input, clip, tile, run);
  run([&](int t) { Transform::template rows<false>(block, t); });
  run([&](int t) { mel_values<Transform>(block, t); });
  run([&](int t) { store_mels<Transform>(block, clip, tile, output, t); });
}

// Computes the gradients of the tile's padded samples; they overwrite the staged samples.
template <class Transform, class Run>
SLAP_FAST_DEVICE void differentiate_tile(const LogMelBlock& block, const LogMelInput& input, const LogMelClip& clip,
                                         const FrameTile& tile, const float* grad, Run& run) {
  const LogMelSizes& sizes = block.sizes;
  transform_tile<Transform, true>(block, input, clip, tile, run);
  run([&](int t) {
    Transform::template rows<true>(block, t);
    load_mel_gradients<Transform>(block, clip, tile, grad, t);
  });
  run([&](int t) { mel_gradients<Transform>(block, t); });
  if (!Transform::kInRegisters) run([&](int t) { Transform::spectrum_gradient(block, t); });
  run([&](int t) { Transform::rows_adjoint(block, t); });
  run([&](int t) { Transform::columns_adjoint(block, t); });
  if (sizes.remove_dc_offset) {
    run([&](int t) { sum_gradients<Transform>(block, t); });
    run([&](int t) { finish_mean<Transform>(block, false, 1.0f - sizes.frame_preemphasis, t); });
  }
  run([&](int t) { overlap_gradients<Transform>(block, tile, t); });
}

// Progress of a backward block, in shared memory to save registers. A block owns a range of a clip's samples. For every
// image of that range in the padded clip it recomputes the overlapping frames, tile by tile, so that each sum has a
// fixed order and needs no atomics.
struct BackwardState {
  LogMelClip clip;
  std::int64_t owned, written, last;    // writes [owned, written), accumulates gradients of [owned, last)
  std::int64_t half_period, frame_end;  // even half periods are the clip, odd ones its mirror image
  Image image;
  FrameTile tile;
  bool needs_gradients, done;  // the tile's gradients must be computed; no tile is left
};

SLAP_FAST_DEVICE bool is_repeated(const LogMelSizes& sizes, const LogMelClip& clip) {
  const std::int64_t end = sizes.first_sample + (clip.frames - 1) * sizes.hop_length + sizes.win_length;
  return sizes.padding != Padding::zeros && (sizes.first_sample < 0 || end > clip.length);
}

SLAP_FAST_DEVICE void start_backward(const LogMelSizes& sizes, const LogMelInput& input, std::int64_t index,
                                     BackwardState& state) {
  const std::int64_t c = clip_of_tile(input.cu_seqlens, input.clips, input.samples, sizes.owned, index);
  const LogMelClip clip = clip_of(input, c);
  state.clip = clip;
  state.owned = (index - first_tile(input.cu_seqlens, c, input.samples, sizes.owned)) * sizes.owned;
  state.done = state.owned < 0 || state.owned >= clip.length;
  if (state.done) return;
  state.written = clamped(state.owned + sizes.owned, 0, clip.length);
  // With preemphasis over the clip, a sample's gradient depends on its successor's.
  state.last = sizes.clip_preemphasis == 0.0f ? state.written : clamped(state.written + 1, 0, clip.length);
  const bool repeated = is_repeated(sizes, clip);
  state.half_period = repeated ? 2 * floor_div(sizes.first_sample, padding_period(sizes.padding, clip.length)) : 0;
  state.half_period -= 1;
  state.tile = {-1, 0};
  state.frame_end = 0;
}

// Advances to the next tile of the image, or to the first tile of the next image that overlaps a frame.
SLAP_FAST_DEVICE void advance_backward(const LogMelSizes& sizes, int frames, BackwardState& state) {
  const LogMelClip clip = state.clip;
  const std::int64_t begin = sizes.first_sample;
  const std::int64_t end = begin + (clip.frames - 1) * sizes.hop_length + sizes.win_length;
  const bool one_tile = clip.frames <= frames;  // then computed once for all images
  const bool computed = state.tile.first >= 0;
  std::int64_t frame = state.tile.first + frames;
  if (!computed || one_tile || frame >= state.frame_end) {
    const std::int64_t period = padding_period(sizes.padding, clip.length);
    const bool repeated = is_repeated(sizes, clip);
    const std::int64_t half_periods = repeated ? 2 * floor_div(end - 1, period) + 2 : 1;
    Image image;
    do {
      state.half_period += 1;
      state.done = state.half_period >= half_periods || clip.frames <= 0;
      if (state.done) return;
      image = {state.owned, state.last, floor_div(state.half_period, 2) * period, state.half_period % 2 != 0};
      if (image.mirrored) {
        image.offset += mirror_sum(sizes.padding, clip.length);
        // Reflection does not repeat edge samples; a clip of one sample has no mirror image.
        const std::int64_t edge = sizes.padding == Padding::reflect || clip.length <= 1;
        image.first = clamped(image.first, edge, clip.length);
        image.last = clamped(image.last, 0, clip.length - edge);
      }
    } while (image.first >= image.last || image.begin() >= end || image.end() <= begin);
    state.image = image;
    frame = clamped(floor_div(image.begin() - begin - sizes.win_length, sizes.hop_length) + 1, 0, clip.frames);
    state.frame_end = clamped(floor_div(image.end() - 1 - begin, sizes.hop_length) + 1, frame, clip.frames);
    if (one_tile) {
      frame = 0;
      state.frame_end = clip.frames;
    }
  }
  state.needs_gradients = !(one_tile && computed);
  state.tile = {frame, static_cast<int>(clamped(state.frame_end - frame, 0, frames))};
}

template <class Transform, class Run>
SLAP_FAST_DEVICE void backward_block(const LogMelBlock& block, const LogMelInput& input, const float* grad,
                                     float* grad_waveform, std::int64_t index, BackwardState& state, Run& run) {
  const LogMelSizes& sizes = block.sizes;
  float* gradients = block.shared + sizes.owned_gradient;
  run([&](int t) {
    if (t == 0) start_backward(sizes, input, index, state);
  });
  if (state.done) return;
  run([&](int t) {
    const int count = static_cast<int>(state.last - state.owned);
    for (int i = t; i < count; i += Transform::kThreads) gradients[i] = 0.0f;
  });
  while (true) {
    run([&](int t) {
      if (t == 0) advance_backward(sizes, Transform::frames(sizes), state);
    });
    if (state.done) break;
    if (state.needs_gradients) differentiate_tile<Transform>(block, input, state.clip, state.tile, grad, run);
    run([&](int t) { collect_gradients<Transform>(block, state.tile, state.image, state.owned, t); });
  }
  run([&](int t) {
    const int count = static_cast<int>(state.last - state.owned);
    const int written = static_cast<int>(state.written - state.owned);
    float* out = grad_waveform + state.clip.begin + state.owned;
    for (int i = t; i < written; i += Transform::kThreads) {
      float value = gradients[i];
      if (sizes.clip_preemphasis != 0.0f && i + 1 < count) value -= sizes.clip_preemphasis * gradients[i + 1];
      out[i] = value * sizes.input_scale;
    }
  });
}

}  // namespace slap_fast::cuda
