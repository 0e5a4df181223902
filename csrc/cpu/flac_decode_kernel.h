// Decoding of runs of frames, one function per instruction set.
#pragma once

#include <cstdint>

#include "flac/types.h"

namespace slap_fast {

// Consecutive frames of a file.
struct FlacRun {
  const std::uint8_t* file;
  std::int64_t size;  // of the file
  flac::Stream stream;
  std::int64_t first_byte;    // of the first frame
  std::int64_t first_sample;  // of the first frame
  std::int64_t start;         // first sample wanted, in the file
  std::int64_t count;         // samples wanted
  bool exact;                 // the wanted samples end with a frame
  std::int64_t end_byte;      // where the last of these frames must end; -1: anywhere
  bool crc;                   // compare checksums of frames
  flac::SampleType dtype;
  void* output;       // [count, channels]
  flac::Error error;  // written
};

// Subframes that are predicted together. Each has its own row of integers, so that it is read and written in order.
constexpr int kFlacLanes = 8;

// Integers in a row for frames of `block` samples: rows are filled up to vectors, and kept out of each other's cache
// sets.
constexpr std::int64_t flac_lane_length(std::int64_t block) { return (block + 8 + 1023) / 1024 * 1024 + 16; }

// Decodes runs one after another. `lanes` [kFlacLanes, lane_length] has been written before, if only with zeros, and no
// stream of the runs has longer frames than the length is for.
namespace baseline {
void decode_flac_runs(FlacRun* runs, std::int64_t count, std::int32_t* lanes, std::int64_t lane_length);
}
namespace avx2 {
void decode_flac_runs(FlacRun* runs, std::int64_t count, std::int32_t* lanes, std::int64_t lane_length);
}
namespace avx512 {
void decode_flac_runs(FlacRun* runs, std::int64_t count, std::int32_t* lanes, std::int64_t lane_length);
}

}  // namespace slap_fast
