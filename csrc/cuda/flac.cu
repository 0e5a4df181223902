// FLAC kernel: one thread a frame; flac_thread.h has what it does.
//
// Floor of a clip of 10 s at 16 kHz (160,000 samples, 187 kB): 187 kB in and 640 kB out, 0.25 us at 3.35 TB/s (H100),
// so 4 million clips a second. Arithmetic: about 90 integer instructions a sample (Rice code 35, prediction with 8
// coefficients 25, its history 8, CRC 12 a byte, conversion and addresses the rest), 14 million a clip; 132
// multiprocessors issue 64 integer instructions a cycle each at 1.7 GHz, 1 us a clip if all lanes of a warp agree: 1
// million clips a second. Neither binds. What does is latency: a frame is one chain of codes, and each of the 4096
// waits for the one before, with about 30 dependent instructions of 5 cycles each: 600,000 cycles, 0.36 ms, however few
// frames there are. A batch of 256 clips has 10,240 frames: 320 warps, 2.4 a multiprocessor, which do not fill it. The
// estimate is therefore 256 clips in 0.4 to 1 ms, 250,000 to 600,000 clips a second, and more with larger batches. A
// warp a frame would have 31 lanes waiting for the chain. These are estimates, not measurements.
//
// Threads of a warp decode different frames, so their loads are of different lines: 32 lines of 128 bytes, which fit
// the L1 cache with many warps. Blocks are small, to spread few warps over all multiprocessors.
#include <cuda_runtime.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/flac.h"
#include "cuda/flac_thread.h"

namespace slap_fast::cuda {
namespace {

constexpr int kThreads = 64;

struct DeviceAtomics {
  __device__ std::uint32_t finish(flac::FileState& state, bool failed) const {
    if (failed) atomicOr(&state.failed, 1u);
    __threadfence();
    return atomicAdd(&state.finished, 1u);
  }
  __device__ bool failed(flac::FileState& state) const {
    __threadfence();
    return atomicOr(&state.failed, 0u) != 0;
  }
};

__global__ void __launch_bounds__(kThreads)
    decode_flac_frames(const __grid_constant__ flac::ThreadArguments arguments) {
#if defined(__CUDA_ARCH__)
  DeviceAtomics atomics;
  flac::flac_thread(arguments, static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x, atomics);
#endif
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the next call reports its own errors
  throw std::runtime_error(std::string("FLAC on CUDA: ") + what + ": " + cudaGetErrorString(error));
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device >= 0) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

std::int64_t state_bytes(const FlacBatch& batch) {
  return static_cast<std::int64_t>(sizeof(flac::FileState)) * batch.files;
}

}  // namespace

std::int64_t flac_workspace_bytes(const FlacBatch& batch, std::int64_t rows) {
  const bool coded = batch.channels == 2 && batch.dtype == flac::SampleType::int16;
  return state_bytes(batch) + (coded ? rows * 2 * static_cast<std::int64_t>(sizeof(std::int32_t)) : 0);
}

void decode_flac(const FlacBatch& batch, std::int64_t bytes, std::int64_t rows, void* workspace, void* stream,
                 int device) {
  if (batch.files <= 0) return;
  const std::int64_t blocks = (flac::flac_threads(batch.files, rows) + kThreads - 1) / kThreads;
  if (blocks > std::numeric_limits<std::int32_t>::max())
    throw std::invalid_argument("FLAC on CUDA: " + std::to_string(rows) + " samples; split the batch");
  const DeviceGuard guard(device);
  const bool coded = flac_workspace_bytes(batch, rows) > state_bytes(batch);
  flac::ThreadArguments arguments{batch, bytes, rows, static_cast<flac::FileState*>(workspace), nullptr};
  if (coded) arguments.coded = reinterpret_cast<std::int32_t*>(static_cast<char*>(workspace) + state_bytes(batch));
  check(cudaMemsetAsync(workspace, 0, static_cast<std::size_t>(state_bytes(batch)), static_cast<cudaStream_t>(stream)),
        "clearing the workspace");
  void* parameters[] = {&arguments};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(decode_flac_frames), dim3(static_cast<unsigned>(blocks)),
                         dim3(kThreads), parameters, 0, static_cast<cudaStream_t>(stream)),
        "launch");
}

}  // namespace slap_fast::cuda
