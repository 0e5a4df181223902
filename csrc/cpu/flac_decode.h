// FLAC files in memory to packed samples, exactly those of libFLAC.
#pragma once

#include <cstdint>

#include "flac/types.h"

namespace slap_fast {

// N files end to end, and where their samples go. With `starts`, file i gives its samples from starts[i] on, and what
// comes after the wanted ones is not checked; without, a file must have exactly the wanted number of samples.
struct FlacBatch {
  const std::uint8_t* data;        // [offsets[files]]
  const std::int64_t* offsets;     // [files + 1], rising from 0: file i is [offsets[i], offsets[i + 1])
  std::int64_t files;              // N
  const std::int64_t* starts;      // [files], or null for whole files
  const std::int64_t* cu_seqlens;  // [files + 1], rising from 0: rows of `output`
  std::int32_t channels;           // of every file
  flac::SampleType dtype;          // float32 in [-1, 1); integers use the whole range, as libsndfile's
  void* output;                    // [cu_seqlens[files], channels]
  std::int32_t* errors;            // [files]; a file that is not `ok` has zeros
  flac::Verify verify;             // md5: only of whole files, and not to int16 if they have more bits
};

// Reads no byte outside a file, whatever it contains, and each file's result depends on its own bytes alone. Where a
// file has a seek point at every frame, threads share its frames; a point is used only if the frames prove it true.
//
// Throws std::invalid_argument for malformed offsets.
void decode_flac(const FlacBatch& batch, std::int64_t bytes, std::int64_t rows, int threads);

// What the header of a file says. `stream` is zeros if the error is not `ok` or `unsupported`. `unknown_length` and
// `wrong_length` (more samples than the bytes can hold) are errors here too.
flac::Error flac_info(const std::uint8_t* file, std::int64_t size, flac::Stream& stream);

// Walks the frames of a file that starts with its header, and calls add(context, point) for each. Stops at the first
// that is damaged. Needed once, to write a seek table.
flac::Error flac_frames(const std::uint8_t* file, std::int64_t size, void (*add)(void*, const flac::Point&),
                        void* context);

}  // namespace slap_fast
