#include "log_mel.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "aligned_array.h"
#include "isa.h"
#include "log_mel_windows.h"
#include "packed_offsets.h"
#include "parallel.h"

namespace slap_fast {
namespace {

constexpr std::int64_t kFramesPerTask = 64;
// Frames that justify one more thread.
constexpr std::int64_t kFramesPerThread = 256;

LogMelKernel chosen_kernel() { SLAP_FAST_DISPATCH(log_mel_kernel()); }

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

int useful_threads(int threads, std::int64_t frames) {
  return static_cast<int>(std::clamp<std::int64_t>(frames / kFramesPerThread, 1, std::max(threads, 1)));
}

template <class Sample>
const Sample* samples_of(const PackedWaveform& waveform) {
  if constexpr (std::is_same_v<Sample, float>)
    return waveform.floats;
  else
    return waveform.int16s;
}

template <class Sample>
Clip<Sample> clip_of(const PackedWaveform& waveform, std::int64_t clip) {
  const std::int64_t begin = waveform.cu_seqlens[clip];
  return {samples_of<Sample>(waveform) + begin, waveform.cu_seqlens[clip + 1] - begin};
}

// Index of the item that contains `position`.
std::int64_t item_at(const std::int64_t* offsets, std::int64_t items, std::int64_t position) {
  return std::upper_bound(offsets, offsets + items + 1, position) - offsets - 1;
}

// Collects windows and runs the kernel once per full vector of lanes.
class ForwardGroup {
 public:
  ForwardGroup(const LogMelSpec& spec, const LogMelView& view, const LogMelKernel& kernel, MelBlocks blocks)
      : hop_(spec.hop_length), view_(view), kernel_(kernel), blocks_(blocks), scratch_(kernel.scratch_floats(view)) {}

  void add(const float* window, float* mels) {
    windows_[count_] = window;
    mels_[count_] = mels;
    if (++count_ == kernel_.lanes) flush();
  }

  void flush() {
    if (count_ == 0) return;
    std::fill(windows_ + count_, windows_ + kernel_.lanes, windows_[0]);
    kernel_.forward(view_, windows_, mels_, count_, blocks_, prefetch(), scratch_.get());
    count_ = 0;
  }

 private:
  // New samples of the next group, if it continues the same clip.
  PrefetchHint prefetch() const {
    const float* last = windows_[kernel_.lanes - 1];
    return {last + view_.win_length, last - windows_[0] == (kernel_.lanes - 1) * hop_ ? kernel_.lanes * hop_ : 0};
  }

  std::int64_t hop_;
  const LogMelView& view_;
  const LogMelKernel& kernel_;
  MelBlocks blocks_;
  AlignedArray<float> scratch_;
  const float* windows_[kMaxLanes];
  float* mels_[kMaxLanes];
  std::int64_t count_ = 0;
};

template <class Sample>
struct ForwardWorker {
  ForwardGroup group;
  Windows<Sample> windows;

  ForwardWorker(const LogMelSpec& spec, const LogMelView& view, const LogMelKernel& kernel, MelBlocks blocks,
                std::int64_t capacity)
      : group(spec, view, kernel, blocks), windows(spec, kernel, capacity) {}
};

template <class Worker, class Make>
std::vector<std::unique_ptr<Worker>> make_workers(int count, Make make) {
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < count; ++i) workers.push_back(make());
  return workers;
}

template <class Sample>
void forward_frames(const LogMelSpec& spec, const LogMelView& view, const PackedWaveform& waveform, float* mels,
                    int threads) {
  const LogMelKernel kernel = chosen_kernel();
  const MelBlocks blocks{spec.n_mels, spec.n_mels};
  using Worker = ForwardWorker<Sample>;
  const auto workers = make_workers<Worker>(
      threads, [&] { return std::make_unique<Worker>(spec, view, kernel, blocks, kFramesPerTask); });
  parallel_for((waveform.frames + kFramesPerTask - 1) / kFramesPerTask, threads, [&](std::int64_t task, int thread) {
    Worker& worker = *workers[thread];
    worker.windows.reset();
    const std::int64_t end = std::min(waveform.frames, (task + 1) * kFramesPerTask);
    std::int64_t frame = task * kFramesPerTask;
    for (std::int64_t clip = item_at(waveform.cu_frames, waveform.clips, frame); frame < end; ++clip) {
      const std::int64_t clip_begin = waveform.cu_frames[clip];
      const std::int64_t stop = std::min(end, waveform.cu_frames[clip + 1]);
      worker.windows.visit(clip_of<Sample>(waveform, clip), frame - clip_begin, stop - frame,
                           [&](std::int64_t index, const float* window) {
                             worker.group.add(window, mels + (clip_begin + index) * spec.n_mels);
                           });
      frame = stop;
    }
    worker.group.flush();
  });
}

// Offsets of the clips' patch columns, one column per layout.frames frames.
struct PatchColumns {
  std::vector<std::int64_t> offsets;  // [clips + 1]

  PatchColumns(const PackedWaveform& waveform, std::int64_t patch_frames) : offsets{0} {
    offsets.reserve(static_cast<std::size_t>(waveform.clips) + 1);
    for (std::int64_t clip = 0; clip < waveform.clips; ++clip) {
      const std::int64_t frames = waveform.cu_frames[clip + 1] - waveform.cu_frames[clip];
      offsets.push_back(offsets.back() + (frames + patch_frames - 1) / patch_frames);
    }
  }
};

// Writes the padding and masked values of one patch column.
void fill_column(const PatchLayout& layout, std::int64_t n_mels, std::int64_t clip, std::int64_t first_frame,
                 std::int64_t frames, float* column) {
  const std::int64_t area = layout.frames * layout.mels;
  for (std::int64_t begin = 0; begin < n_mels; begin += layout.mels) {
    float* patch = column + begin / layout.mels * area;
    if (layout.mel_masked)
      for (std::int64_t mel = 0; mel < layout.mels; ++mel)
        if (layout.mel_masked[clip * n_mels + begin + mel])
          for (std::int64_t i = 0; i < frames; ++i) patch[i * layout.mels + mel] = layout.mask_value;
    if (layout.time_masked)
      for (std::int64_t i = 0; i < frames; ++i)
        if (layout.time_masked[first_frame + i]) std::fill_n(patch + i * layout.mels, layout.mels, layout.mask_value);
    std::fill(patch + frames * layout.mels, patch + area, layout.padding);
  }
}

template <class Sample>
void forward_patches(const LogMelSpec& spec, const LogMelView& view, const PackedWaveform& waveform,
                     const PatchLayout& layout, const PatchColumns& columns, float* patches, int threads) {
  const LogMelKernel kernel = chosen_kernel();
  const MelBlocks blocks{layout.mels, layout.frames * layout.mels};
  const std::int64_t column_floats = layout.frames * spec.n_mels;
  const std::int64_t per_task = std::max<std::int64_t>(1, kFramesPerTask / layout.frames);
  using Worker = ForwardWorker<Sample>;
  const auto workers = make_workers<Worker>(
      threads, [&] { return std::make_unique<Worker>(spec, view, kernel, blocks, per_task * layout.frames); });
  const std::int64_t total = columns.offsets.back();
  parallel_for((total + per_task - 1) / per_task, threads, [&](std::int64_t task, int thread) {
    Worker& worker = *workers[thread];
    worker.windows.reset();
    const std::int64_t end = std::min(total, (task + 1) * per_task);
    const std::int64_t begin = task * per_task;
    const auto each_column = [&](auto visit) {
      std::int64_t clip = item_at(columns.offsets.data(), waveform.clips, begin);
      for (std::int64_t column = begin; column < end; ++column) {
        while (columns.offsets[clip + 1] <= column) ++clip;
        const std::int64_t first = (column - columns.offsets[clip]) * layout.frames;
        const std::int64_t frames = waveform.cu_frames[clip + 1] - waveform.cu_frames[clip] - first;
        visit(clip, first, std::min(frames, layout.frames), patches + column * column_floats);
      }
    };
    each_column([&](std::int64_t clip, std::int64_t first, std::int64_t frames, float* column) {
      worker.windows.visit(clip_of<Sample>(waveform, clip), first, frames,
                           [&](std::int64_t index, const float* window) {
                             worker.group.add(window, column + (index - first) * layout.mels);
                           });
    });
    worker.group.flush();
    each_column([&](std::int64_t clip, std::int64_t first, std::int64_t frames, float* column) {
      fill_column(layout, spec.n_mels, clip, waveform.cu_frames[clip] + first, frames, column);
    });
  });
}

// Sample range of a clip whose gradient is computed by one task: it adds all overlapping frames in order, so the result
// is bitwise independent of threads and of other clips.
struct Segment {
  std::int64_t clip, begin, end;
};

std::vector<Segment> make_segments(const LogMelSpec& spec, const PackedWaveform& waveform) {
  const std::int64_t hop = spec.hop_length, win = spec.win_length;
  // A multiple of every kernel's lanes, for about 128 Ki samples or 128 frames.
  const std::int64_t frames = std::clamp<std::int64_t>((1 << 17) / hop / kMaxLanes, 1, 8) * kMaxLanes;
  const std::int64_t target_length = std::max(frames * hop - win + 1, hop);
  std::vector<Segment> segments;
  for (std::int64_t clip = 0; clip < waveform.clips; ++clip) {
    const std::int64_t length = waveform.cu_seqlens[clip + 1] - waveform.cu_seqlens[clip];
    const std::int64_t clip_frames = waveform.cu_frames[clip + 1] - waveform.cu_frames[clip];
    // Samples reflected into the padding must be in the adjacent segment.
    const std::int64_t before = std::max<std::int64_t>(0, -spec.first_sample);
    const std::int64_t after = std::max<std::int64_t>(0, spec.first_sample + (clip_frames - 1) * hop + win - length);
    const std::int64_t segment_length = std::max({target_length, before + 2, after + 2});
    const std::int64_t count = std::max<std::int64_t>(1, length / segment_length);
    for (std::int64_t i = 0; i < count && length > 0; ++i)
      segments.push_back({clip, i * segment_length, i + 1 == count ? length : (i + 1) * segment_length});
  }
  return segments;
}

class BackwardWorker {
 public:
  BackwardWorker(const LogMelSpec& spec, const LogMelView& view, const LogMelKernel& kernel)
      : spec_(spec),
        view_(view),
        kernel_(kernel),
        windows_(spec, kernel, kernel.lanes),
        scratch_(kernel.scratch_floats(view)),
        width_((spec.win_length + 7) / 8 * 8),
        grad_windows_(kernel.lanes * width_) {}

  void run(const PackedWaveform& waveform, const float* grad_mels, const Segment& segment, float* grad_waveform) {
    const Clip<float> clip = clip_of<float>(waveform, segment.clip);
    const std::int64_t hop = spec_.hop_length, win = spec_.win_length, first = spec_.first_sample;
    const std::int64_t first_frame = waveform.cu_frames[segment.clip];
    const std::int64_t frames = waveform.cu_frames[segment.clip + 1] - first_frame;
    const bool is_first = segment.begin == 0, is_last = segment.end == clip.length;
    // Includes the adjacent padding, and the next sample if preemphasis over the clip refers back to this segment.
    begin_ = is_first ? std::min<std::int64_t>(0, first) : segment.begin;
    const std::int64_t end =
        is_last ? std::max(clip.length, first + (frames - 1) * hop + win) : segment.end + spec_.preemphasis_over_clip;
    sum_.assign(static_cast<std::size_t>(end - begin_), 0.0f);

    // Frames that overlap [begin_, end).
    const std::int64_t low = std::min(std::max<std::int64_t>(0, begin_ - first - win + hop) / hop, frames);
    const std::int64_t high = std::min(std::max<std::int64_t>(0, end - first + hop - 1) / hop, frames);
    for (std::int64_t group = low; group < high; group += kernel_.lanes) {
      const std::int64_t count = std::min(kernel_.lanes, high - group);
      windows_.reset();
      const float* samples[kMaxLanes];
      const float* grads[kMaxLanes];
      windows_.visit(clip, group, count, [&](std::int64_t frame, const float* window) {
        samples[frame - group] = window;
        grads[frame - group] = grad_mels + (first_frame + frame) * spec_.n_mels;
      });
      std::fill(samples + count, samples + kernel_.lanes, samples[0]);
      std::fill(grads + count, grads + kernel_.lanes, grads[0]);
      kernel_.backward(view_, samples, grads, grad_windows_.get(), scratch_.get());
      for (std::int64_t i = 0; i < count; ++i)
        add(first + (group + i) * hop - begin_, grad_windows_.get() + i * width_);
    }
    fold_padding(clip.length, end);
    write(segment, clip.length, grad_waveform + waveform.cu_seqlens[segment.clip]);
  }

 private:
  // Adds the gradient of a frame that starts at `start`, clipped to the segment.
  void add(std::int64_t start, const float* grad) {
    const std::int64_t skip = std::max<std::int64_t>(0, -start);
    const std::int64_t stop = std::min(spec_.win_length, static_cast<std::int64_t>(sum_.size()) - start);
    if (skip < stop) kernel_.add(grad + skip, stop - skip, sum_.data() + start + skip);
  }

  void fold_padding(std::int64_t length, std::int64_t end) {
    const auto fold = [&](std::int64_t position) {
      const std::int64_t source = source_of(position, length, spec_.padding);
      if (source >= 0) sum_[source - begin_] += sum_[position - begin_];
    };
    for (std::int64_t i = begin_; i < 0; ++i) fold(i);
    for (std::int64_t i = length; i < end; ++i) fold(i);
  }

  void write(const Segment& segment, std::int64_t length, float* out) {
    float* sum = sum_.data() + (segment.begin - begin_);
    const std::int64_t count = segment.end - segment.begin;
    if (spec_.preemphasis_over_clip)
      for (std::int64_t i = 0; i < count && segment.begin + i + 1 < length; ++i)
        sum[i] -= spec_.preemphasis * sum[i + 1];
    kernel_.scale_float(sum, count, spec_.input_scale, out + segment.begin);
  }

  const LogMelSpec& spec_;
  const LogMelView& view_;
  const LogMelKernel& kernel_;
  Windows<float> windows_;
  AlignedArray<float> scratch_;
  std::int64_t width_;
  AlignedArray<float> grad_windows_;
  std::int64_t begin_ = 0;  // padded position of sum_[0]
  std::vector<float> sum_;  // gradient of samples and padding
};

}  // namespace

LogMel::BandedMatrix LogMel::banded_matrix(const std::vector<float>& matrix, std::int64_t rows, std::int64_t columns,
                                           bool transposed) {
  const auto at = [&](std::int64_t row, std::int64_t column) {
    return matrix[static_cast<std::size_t>(transposed ? column * rows + row : row * columns + column)];
  };
  BandedMatrix banded;
  banded.offset.push_back(0);
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t begin = 0, end = columns;
    while (begin < end && at(row, begin) == 0.0f) ++begin;
    while (begin < end && at(row, end - 1) == 0.0f) --end;
    // An all-zero filter still reads one bin, times zero, so that NaN propagates to every mel value.
    if (begin == end && !transposed) begin = 0, end = 1;
    banded.first.push_back(static_cast<std::int32_t>(begin));
    for (std::int64_t column = begin; column < end; ++column) banded.weights.push_back(at(row, column));
    banded.offset.push_back(static_cast<std::int32_t>(banded.weights.size()));
  }
  return banded;
}

LogMel::LogMel(LogMelSpec spec) : spec_(std::move(spec)) {
  constexpr std::int64_t kMaxSize = std::int64_t{1} << 24;
  const std::int64_t n_fft = spec_.n_fft, win = spec_.win_length, n_bins = n_fft / 2 + 1;
  for (const auto& [name, value] :
       {std::pair{"n_fft", n_fft}, {"win_length", win}, {"hop_length", spec_.hop_length}, {"n_mels", spec_.n_mels}})
    require(value >= 1 && value <= kMaxSize,
            std::string(name) + " is " + std::to_string(value) + "; it must lie in [1, 2^24]");
  require(win <= n_fft, "win_length " + std::to_string(win) + " is above n_fft " + std::to_string(n_fft));
  require(spec_.first_sample >= -kMaxSize && spec_.first_sample <= kMaxSize,
          "first_sample is " + std::to_string(spec_.first_sample) + "; it must lie in [-2^24, 2^24]");
  require(static_cast<std::int64_t>(spec_.window.size()) == win,
          "the window has " + std::to_string(spec_.window.size()) + " values, win_length is " + std::to_string(win));
  require(static_cast<std::int64_t>(spec_.filters.size()) == spec_.n_mels * n_bins,
          "the filters have " + std::to_string(spec_.filters.size()) + " values, not n_mels times n_fft / 2 + 1");

  const bool paired = n_fft % 2 == 0;
  const std::int64_t points = paired ? n_fft / 2 : n_fft;
  fft_ = std::make_unique<FftPlan>(points);
  window_ = spec_.window;
  if (paired)
    for (float& weight : window_) weight *= 0.5f;
  const FftView fft = fft_->view();
  const std::int64_t row_stride = paired ? 1 : 2;
  for (std::int64_t i = 0; i < n_fft; ++i) {
    const std::int64_t point = i * row_stride / 2;
    rows_.push_back(static_cast<std::int32_t>(i * row_stride + 2 * (point / fft.block)));
  }
  const double dc_factor = spec_.preemphasis_over_clip ? 1.0 : 1.0 - static_cast<double>(spec_.preemphasis);
  if (spec_.remove_dc_offset) {
    dc_weights_.assign(static_cast<std::size_t>(2 * points), 0.0f);
    for (std::int64_t i = 0; i < win; ++i)
      dc_weights_[static_cast<std::size_t>(i * row_stride)] =
          static_cast<float>(dc_factor * window_[static_cast<std::size_t>(i)]);
  }
  for (std::int64_t k = 0; k < points; ++k) {
    const double angle = -2.0 * 3.14159265358979323846 * static_cast<double>(k) / static_cast<double>(n_fft);
    split_.push_back(static_cast<float>(std::cos(angle)));
    split_.push_back(static_cast<float>(std::sin(angle)));
  }
  mel_of_bins_ = banded_matrix(spec_.filters, spec_.n_mels, n_bins, false);
  bin_of_mels_ = banded_matrix(spec_.filters, n_bins, spec_.n_mels, true);

  view_.fft = fft;
  view_.paired = paired;
  view_.n_fft = n_fft;
  view_.rows = rows_.data();
  view_.win_length = win;
  view_.n_bins = n_bins;
  view_.n_mels = spec_.n_mels;
  view_.window = window_.data();
  view_.dc_weights = spec_.remove_dc_offset ? dc_weights_.data() : nullptr;
  view_.dc_factor = static_cast<float>(dc_factor);
  view_.split = split_.data();
  view_.mel_of_bins = mel_of_bins_.view();
  view_.bin_of_mels = bin_of_mels_.view();
  view_.preemphasis = spec_.preemphasis_over_clip ? 0.0f : spec_.preemphasis;
  view_.magnitude = spec_.magnitude;
  view_.logarithm = spec_.logarithm;
  view_.power_guard = spec_.power_guard;
  view_.log_floor = spec_.log_floor;
  view_.log_guard = spec_.log_guard;
  view_.log_scale = spec_.log_scale;
  view_.log_shift = spec_.log_shift;
}

void LogMel::check(const PackedWaveform& waveform) const {
  check_offsets("cu_seqlens", waveform.cu_seqlens, waveform.clips, waveform.samples, "samples");
  check_offsets("cu_frames", waveform.cu_frames, waveform.clips, waveform.frames, "frames");
  require(waveform.frames <= std::numeric_limits<std::int64_t>::max() / (1 << 26),
          "there are " + std::to_string(waveform.frames) + " frames; positions would overflow");
}

void LogMel::forward(const PackedWaveform& waveform, float* mels, int threads) const {
  check(waveform);
  threads = useful_threads(threads, waveform.frames);
  if (waveform.int16s)
    forward_frames<std::int16_t>(spec_, view_, waveform, mels, threads);
  else
    forward_frames<float>(spec_, view_, waveform, mels, threads);
}

void LogMel::patches(const PackedWaveform& waveform, const PatchLayout& layout, float* patches, std::int64_t tokens,
                     int threads) const {
  check(waveform);
  require(layout.frames >= 1 && layout.frames <= 4096,
          "patch_frames is " + std::to_string(layout.frames) + "; it must lie in [1, 4096]");
  require(layout.mels >= 1 && spec_.n_mels % layout.mels == 0,
          "n_mels " + std::to_string(spec_.n_mels) + " is not a multiple of patch_mels " + std::to_string(layout.mels));
  const PatchColumns columns(waveform, layout.frames);
  const std::int64_t expected = columns.offsets.back() * (spec_.n_mels / layout.mels);
  require(tokens == expected,
          "patches has " + std::to_string(tokens) + " tokens; the clips have " + std::to_string(expected));
  threads = useful_threads(threads, waveform.frames);
  if (waveform.int16s)
    forward_patches<std::int16_t>(spec_, view_, waveform, layout, columns, patches, threads);
  else
    forward_patches<float>(spec_, view_, waveform, layout, columns, patches, threads);
}

void LogMel::backward(const PackedWaveform& waveform, const float* grad_mels, float* grad_waveform, int threads) const {
  check(waveform);
  require(waveform.int16s == nullptr, "int16 samples have no gradient");
  threads = useful_threads(threads, waveform.frames);
  const LogMelKernel kernel = chosen_kernel();
  const std::vector<Segment> segments = make_segments(spec_, waveform);
  const auto workers =
      make_workers<BackwardWorker>(threads, [&] { return std::make_unique<BackwardWorker>(spec_, view_, kernel); });
  parallel_for(static_cast<std::int64_t>(segments.size()), threads, [&](std::int64_t i, int thread) {
    workers[thread]->run(waveform, grad_mels, segments[static_cast<std::size_t>(i)], grad_waveform);
  });
}

}  // namespace slap_fast
