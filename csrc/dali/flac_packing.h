// The files of a batch end to end, in runs of neighbors with the same number of channels: a launch decodes one run.
// Most batches are one run.
#pragma once

#include <algorithm>
#include <vector>

#include "flac_clip.h"

namespace slap_fast::dali_plugin {

struct Packing {
  struct Run {
    std::int64_t first, last;  // clips [first, last)
    int channels;              // 0: of no clip
    std::int64_t numbers = 0;  // where its offsets and rows start
    std::int64_t byte = 0;     // where its files start
    std::int64_t bytes = 0, rows = 0;
  };

  std::vector<Run> runs;
  std::vector<std::int64_t> offsets;  // for each run, of its files and their end, from the start of the run
  std::vector<std::int64_t> rows;     // the same of their samples
  std::vector<std::int64_t> starts;   // [clips] where the bytes of each go
  std::int64_t bytes = 0;

  // A clip with a bad header has no bytes and no samples here, and goes with any neighbors.
  explicit Packing(const std::vector<Clip>& clips) {
    split(clips);
    starts.resize(clips.size());
    for (Run& run : runs) {
      run.numbers = static_cast<std::int64_t>(offsets.size());
      run.byte = bytes;
      for (std::int64_t i = run.first; i < run.last; ++i) {
        offsets.push_back(run.bytes);
        rows.push_back(run.rows);
        starts[i] = run.byte + run.bytes;
        if (clips[i].error != flac::Error::ok) continue;
        run.bytes += clips[i].size;
        run.rows += clips[i].samples;
      }
      offsets.push_back(run.bytes);
      rows.push_back(run.rows);
      bytes += run.bytes;
    }
  }

  // Of copies of the arrays in whichever memory; `output` and `errors` are those of the first clip of the run.
  FlacBatch batch(const Run& run, const std::uint8_t* packed, const std::int64_t* all_offsets,
                  const std::int64_t* all_rows, const ClipLimits& limits, void* output, std::int32_t* errors) const {
    FlacBatch batch{};
    batch.data = packed + run.byte;
    batch.offsets = all_offsets + run.numbers;
    batch.files = run.last - run.first;
    batch.cu_seqlens = all_rows + run.numbers;
    batch.channels = std::max(run.channels, 1);
    batch.dtype = limits.dtype;
    batch.output = output;
    batch.errors = errors;
    batch.verify = limits.verify;
    return batch;
  }

 private:
  void split(const std::vector<Clip>& clips) {
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(clips.size()); ++i) {
      const int channels = clips[i].error == flac::Error::ok ? clips[i].channels : 0;
      if (runs.empty() || (channels > 0 && runs.back().channels > 0 && channels != runs.back().channels))
        runs.push_back({i, i, 0});
      runs.back().channels = std::max(runs.back().channels, channels);
      runs.back().last = i + 1;
    }
  }
};

}  // namespace slap_fast::dali_plugin
