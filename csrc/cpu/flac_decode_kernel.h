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

// Subframes that are predicted together. Each has its own row of integers, so that it is read and written in order; the
// row's length keeps rows out of each other's cache sets.
constexpr int kFlacLanes = 8;
constexpr std::int64_t kFlacLaneLength = 65536 + 1040;

namespace baseline {
void decode_flac_runs(FlacRun* runs, std::int64_t count, std::int32_t* lanes);
}
namespace avx2 {
void decode_flac_runs(FlacRun* runs, std::int64_t count, std::int32_t* lanes);
}
namespace avx512 {
void decode_flac_runs(FlacRun* runs, std::int64_t count, std::int32_t* lanes);
}

}  // namespace slap_fast
