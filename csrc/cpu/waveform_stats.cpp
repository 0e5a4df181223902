#include "waveform_stats.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "packed_offsets.h"
#include "parallel.h"
#include "waveform_stats_kernel.h"

namespace slap_fast {
namespace {

using Kernel = BlockStats (*)(const float*, std::int64_t);

Kernel chosen_kernel() { SLAP_FAST_DISPATCH(waveform_stats_block); }

struct Block {
  std::int64_t begin;
  std::int64_t count;
};

// Samples that justify one more thread.
constexpr std::int64_t kSamplesPerThread = 1 << 18;

}  // namespace

void waveform_stats(const float* waveform, std::int64_t total, const std::int64_t* cu_seqlens, std::int64_t clips,
                    float* peak, double* mean_square, std::int64_t* nonfinite, int threads) {
  check_offsets("cu_seqlens", cu_seqlens, clips, total, "samples");

  std::vector<Block> blocks;
  blocks.reserve(static_cast<std::size_t>(clips + total / kStatsBlock));
  for (std::int64_t clip = 0; clip < clips; ++clip)
    for (std::int64_t begin = cu_seqlens[clip]; begin < cu_seqlens[clip + 1]; begin += kStatsBlock)
      blocks.push_back({begin, std::min(kStatsBlock, cu_seqlens[clip + 1] - begin)});

  const Kernel kernel = chosen_kernel();
  const int thread_count = static_cast<int>(std::min<std::int64_t>(threads, total / kSamplesPerThread + 1));
  std::vector<BlockStats> stats(blocks.size());
  // Several blocks per task: a batch of very short clips has many tiny blocks.
  const std::int64_t count = static_cast<std::int64_t>(blocks.size());
  const std::int64_t per_task = std::max<std::int64_t>(1, count / (std::int64_t{8} * std::max(thread_count, 1)));
  parallel_for((count + per_task - 1) / per_task, thread_count, [&](std::int64_t task, int) {
    const std::int64_t end = std::min(count, (task + 1) * per_task);
    for (std::int64_t i = task * per_task; i < end; ++i) stats[i] = kernel(waveform + blocks[i].begin, blocks[i].count);
  });

  std::int64_t block = 0;
  for (std::int64_t clip = 0; clip < clips; ++clip) {
    const std::int64_t samples = cu_seqlens[clip + 1] - cu_seqlens[clip];
    double sum = 0.0;
    float clip_peak = 0.0f;
    std::int64_t clip_nonfinite = 0;
    for (std::int64_t done = 0; done < samples; done += kStatsBlock, ++block) {
      sum += stats[block].sum_of_squares;
      clip_peak = std::max(clip_peak, stats[block].peak);
      clip_nonfinite += stats[block].nonfinite;
    }
    peak[clip] = clip_peak;
    mean_square[clip] = samples > clip_nonfinite ? sum / static_cast<double>(samples - clip_nonfinite) : 0.0;
    nonfinite[clip] = clip_nonfinite;
  }
}

}  // namespace slap_fast
