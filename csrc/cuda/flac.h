// FLAC files in GPU memory to packed samples, one launch for a batch.
#pragma once

#include <cstdint>

#include "cpu/flac_decode.h"

namespace slap_fast::cuda {

// Bytes of device memory that `decode_flac` needs beside its arguments.
std::int64_t flac_workspace_bytes(const FlacBatch& batch, std::int64_t rows);

// As slap_fast::decode_flac, with device pointers and the same results. Queues on `stream` without waiting, allocating
// or reading back, so that a CUDA graph can capture it. Offsets are not validated, but clamped to `bytes` and `rows`.
//
// A file whose seek table has a point at every frame is decoded by one thread a frame; another one by a single thread.
// `device` is that of the pointers and the stream, -1 the current one. Throws std::runtime_error for CUDA errors.
void decode_flac(const FlacBatch& batch, std::int64_t bytes, std::int64_t rows, void* workspace, void* stream,
                 int device = -1);

}  // namespace slap_fast::cuda
