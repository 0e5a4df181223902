#include "mel_normalization.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "isa.h"
#include "mel_normalization_kernel.h"
#include "packed_offsets.h"
#include "parallel.h"

namespace slap_fast {
namespace {

constexpr std::int64_t kFramesPerBlock = 256;
// Values that justify one more thread.
constexpr std::int64_t kValuesPerThread = 1 << 17;

MelNormalizationKernels chosen_kernels() { SLAP_FAST_DISPATCH(mel_normalization_kernels()); }

struct Block {
  std::int64_t clip, begin, count;
};

std::vector<Block> blocks_of(const std::int64_t* cu_frames, std::int64_t clips) {
  std::vector<Block> blocks;
  for (std::int64_t clip = 0; clip < clips; ++clip)
    for (std::int64_t begin = cu_frames[clip]; begin < cu_frames[clip + 1]; begin += kFramesPerBlock)
      blocks.push_back({clip, begin, std::min(kFramesPerBlock, cu_frames[clip + 1] - begin)});
  return blocks;
}

// Per-clip statistics used by the kernels.
struct ClipStats {
  std::vector<float> floor;             // [clips]
  std::vector<double> center, divisor;  // [clips, n_mels], or empty
};

class Normalizer {
 public:
  Normalizer(const float* frames, std::int64_t n_mels, const std::int64_t* cu_frames, std::int64_t clips, int threads)
      : frames_(frames),
        n_mels_(n_mels),
        cu_frames_(cu_frames),
        clips_(clips),
        threads_(threads),
        blocks_(blocks_of(cu_frames, clips)) {
    stats_.floor.assign(static_cast<std::size_t>(clips), -std::numeric_limits<float>::infinity());
  }

  void limit_range(float dynamic_range) {
    std::vector<float> bin_max(blocks_.size() * n_mels_, -std::numeric_limits<float>::infinity());
    for_each_block([&](std::size_t i, const Block& block) {
      kernels_.update_max(frames_ + block.begin * n_mels_, block.count, n_mels_, bin_max.data() + i * n_mels_);
    });
    std::vector<float> peak(static_cast<std::size_t>(clips_), -std::numeric_limits<float>::infinity());
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      float& value = peak[static_cast<std::size_t>(blocks_[i].clip)];
      kernels_.update_max(bin_max.data() + i * n_mels_, n_mels_, 1, &value);
    }
    for (std::size_t clip = 0; clip < peak.size(); ++clip) stats_.floor[clip] = peak[clip] - dynamic_range;
  }

  void standardize(double guard) {
    const std::vector<double> zero(static_cast<std::size_t>(clips_ * n_mels_), 0.0);
    stats_.center = totals(kernels_.add, zero);
    for_each_stat(stats_.center, [](double sum, std::int64_t count) { return sum / count; });
    stats_.divisor = totals(kernels_.add_square, stats_.center);
    for_each_stat(stats_.divisor, [guard](double sum, std::int64_t count) {
      return std::sqrt(sum / std::max<std::int64_t>(count - 1, 1)) + guard;
    });
  }

  void write(float mean, float deviation, float* out) {
    const bool standard = !stats_.center.empty();
    for_each_block([&](std::size_t, const Block& block) {
      const std::int64_t at = block.clip * n_mels_;
      kernels_.write(frames_ + block.begin * n_mels_, block.count, n_mels_,
                     stats_.floor[static_cast<std::size_t>(block.clip)], standard ? stats_.center.data() + at : nullptr,
                     standard ? stats_.divisor.data() + at : nullptr, mean, deviation, out + block.begin * n_mels_);
    });
  }

 private:
  template <class Visit>
  void for_each_block(Visit visit) const {
    parallel_for(static_cast<std::int64_t>(blocks_.size()), threads_, [&](std::int64_t i, int) {
      visit(static_cast<std::size_t>(i), blocks_[static_cast<std::size_t>(i)]);
    });
  }

  // Sums per block, then over the blocks of each clip in order.
  template <class Kernel>
  std::vector<double> totals(Kernel kernel, const std::vector<double>& center) const {
    std::vector<double> sums(blocks_.size() * n_mels_, 0.0);
    for_each_block([&](std::size_t i, const Block& block) {
      kernel(frames_ + block.begin * n_mels_, block.count, n_mels_, stats_.floor[static_cast<std::size_t>(block.clip)],
             center.data() + block.clip * n_mels_, sums.data() + i * n_mels_);
    });
    std::vector<double> total(static_cast<std::size_t>(clips_ * n_mels_), 0.0);
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      for (std::int64_t mel = 0; mel < n_mels_; ++mel)
        total[static_cast<std::size_t>(blocks_[i].clip * n_mels_ + mel)] += sums[i * n_mels_ + mel];
    return total;
  }

  template <class Update>
  void for_each_stat(std::vector<double>& values, Update update) const {
    for (std::int64_t clip = 0; clip < clips_; ++clip)
      for (std::int64_t mel = 0; mel < n_mels_; ++mel) {
        double& value = values[static_cast<std::size_t>(clip * n_mels_ + mel)];
        value = update(value, cu_frames_[clip + 1] - cu_frames_[clip]);
      }
  }

  const float* frames_;
  std::int64_t n_mels_;
  const std::int64_t* cu_frames_;
  std::int64_t clips_;
  int threads_;
  std::vector<Block> blocks_;
  MelNormalizationKernels kernels_ = chosen_kernels();
  ClipStats stats_;
};

}  // namespace

void normalize_mels(const float* frames, std::int64_t total, std::int64_t n_mels, const std::int64_t* cu_frames,
                    std::int64_t clips, const MelNormalization& params, float* normalized, int threads) {
  if (n_mels < 1) throw std::invalid_argument("n_mels is " + std::to_string(n_mels) + "; it must be at least 1");
  check_offsets("cu_frames", cu_frames, clips, total, "frames");
  threads = static_cast<int>(std::clamp<std::int64_t>(total * n_mels / kValuesPerThread, 1, std::max(threads, 1)));
  Normalizer normalizer(frames, n_mels, cu_frames, clips, threads);
  if (params.limit_range) normalizer.limit_range(params.dynamic_range);
  if (params.standardize) normalizer.standardize(params.guard);
  normalizer.write(params.mean, params.deviation, normalized);
}

}  // namespace slap_fast
