// Fused log-mel forward and backward kernels. log_mel_phases.h has the phases of a block, log_mel_transforms.h the DFT.
//
// Memory traffic at one frame per 10 ms of 16 kHz audio: 640 B in, 256 B out, at least 0.22 ns at the 4 TB/s of an
// H200, or 52 cycles of one of its 132 SMs. Arithmetic of a 512-point frame, if mma.sync reaches 60 % of the TF32 peak:
//
//   dense DFT on tensor cores, 3 x TF32    1.2 MFLOP at 300 TFLOP/s      4.1 ns     18 x memory time
//   four-step 16 x 16 DFT, 3 x TF32        0.2 MFLOP at 300 TFLOP/s      0.66 ns    3 x memory time
//   real FFT in registers, float32         9,000 operations, 128/cycle   70 cycles  1.4 x memory time
//
// Hence an FFT in registers, which needs CUDA: Triton does not expose registers. A complex FFT of half the size needs a
// second exchange through shared memory, whose bandwidth (128 B/cycle) is as scarce as arithmetic. Instead, columns of
// 32 real samples get a real DFT and rows of 16 a complex one, with one exchange between. Shared-memory cycles per
// frame: staging 5, sums 13, columns 13, exchange 32, powers 8, filters 16, tables and output 15: 100. By the sm_90
// SASS and the trip counts of its loops, a frame takes about 17,000 thread instructions, 130 cycles: at most 40 % of
// copy bandwidth forward, if two blocks per SM hide each other's barriers and loads. These are estimates, not
// measurements.
//
// A block processes 32 frames, one per lane. Everything that depends on the position in the frame (window, twiddles,
// filters, special rows of the real DFT) is then uniform across a warp: broadcast loads, no divergence.
#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/log_mel.h"
#include "cuda/log_mel_fft_sizes.h"
#include "cuda/log_mel_phases.h"
#include "cuda/log_mel_plan.h"

namespace slap_fast::cuda {
namespace {

struct KernelArguments {
  LogMelSizes sizes;
  LogMelTables tables;
  LogMelInput input;
  const float* grad_mels;
  float* output;
};

struct BlockThreads {
  template <class Phase>
  SLAP_FAST_DEVICE void operator()(const Phase& phase) {
#if defined(__CUDA_ARCH__)
    phase(static_cast<int>(threadIdx.x));
    __syncthreads();
#endif
  }
};

extern __shared__ float4 shared_memory[];
constexpr int kStaticSharedBytes = 1024;  // upper bound of the kernels' static shared memory
static_assert(sizeof(BackwardState) <= kStaticSharedBytes);

template <class Transform>
__global__ void __launch_bounds__(Transform::kThreads, Transform::kBlocks)
    log_mel_forward(const __grid_constant__ KernelArguments arguments) {
  const LogMelBlock block{arguments.sizes, arguments.tables, reinterpret_cast<float*>(shared_memory)};
  BlockThreads run;
  forward_block<Transform>(block, arguments.input, arguments.output, blockIdx.x, run);
}

template <class Transform>
__global__ void __launch_bounds__(Transform::kThreads, Transform::kBlocks)
    log_mel_backward(const __grid_constant__ KernelArguments arguments) {
  const LogMelBlock block{arguments.sizes, arguments.tables, reinterpret_cast<float*>(shared_memory)};
  __shared__ BackwardState state;
  BlockThreads run;
  backward_block<Transform>(block, arguments.input, arguments.grad_mels, arguments.output, blockIdx.x, state, run);
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the next call reports its own errors
  throw std::runtime_error(std::string("log-mel on CUDA: ") + what + ": " + cudaGetErrorString(error));
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

using Kernel = void (*)(KernelArguments);

template <class Transform>
Kernel kernel_of(bool backward) {
  return backward ? log_mel_backward<Transform> : log_mel_forward<Transform>;
}

}  // namespace

struct LogMel::Pass {
  LogMelSizes sizes{};
  LogMelTables tables{};
  Kernel kernel = nullptr;
  std::size_t shared_bytes = 0;
  void* memory = nullptr;
  int device = 0;

  ~Pass() {
    int previous = 0;
    if (!memory || cudaGetDevice(&previous) != cudaSuccess) return;
    cudaSetDevice(device);
    cudaFree(memory);
    cudaSetDevice(previous);
  }

  void launch(std::int64_t blocks, const LogMelInput& input, const float* grad_mels, float* output,
              void* stream) const {
    if (blocks <= 0) return;
    if (blocks > std::numeric_limits<std::int32_t>::max())
      throw std::invalid_argument("log-mel on CUDA: " + std::to_string(blocks) + " blocks of work; split the batch");
    const DeviceGuard guard(device);
    KernelArguments arguments{sizes, tables, input, grad_mels, output};
    void* parameters[] = {&arguments};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                           dim3(static_cast<unsigned>(sizes.threads)), parameters, shared_bytes,
                           static_cast<cudaStream_t>(stream)),
          "launch");
  }
};

std::string unavailable() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) return "";
  cudaGetLastError();
  return error == cudaSuccess ? "no CUDA device" : cudaGetErrorString(error);
}

void LogMel::prepare(Pass& pass, const LogMelSpec& spec, bool backward, int device) {
  int limit = 0;
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory limit");
  limit -= kStaticSharedBytes;
  const LogMelPlan plan = plan_log_mel(spec, backward, limit);
  pass.sizes = plan.sizes;
  pass.device = device;
  pass.shared_bytes = static_cast<std::size_t>(plan.sizes.shared_floats) * sizeof(float);
  const auto choose = [&](auto transform) { pass.kernel = kernel_of<decltype(transform)>(backward); };
  if (!(plan.in_registers && visit_register_transform(plan.sizes.n_fft, choose))) choose(LoopTransform());
  // The limit, not this plan's size: the attribute is per kernel and shared by all plans.
  const void* kernel = reinterpret_cast<const void*>(pass.kernel);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit), "shared memory size");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        "shared memory carveout");

  // One allocation for all tables, each 256-byte aligned.
  std::size_t total = 0;
  const auto place = [&](const auto& table) {
    const std::size_t offset = total;
    total += (table.size() * sizeof(table[0]) + 255) / 256 * 256;
    return offset;
  };
  const std::size_t offsets[] = {place(plan.taps),
                                 place(plan.roots),
                                 place(plan.mel_begin),
                                 place(plan.mel_weights),
                                 place(plan.spectrum_weights),
                                 place(plan.bin_begin),
                                 place(plan.bin_weights)};
  check(cudaMalloc(&pass.memory, total), "cudaMalloc of tables");
  const auto upload = [&](auto& address, const auto& table, std::size_t offset) {
    void* place = static_cast<char*>(pass.memory) + offset;
    check(cudaMemcpy(place, table.data(), table.size() * sizeof(table[0]), cudaMemcpyHostToDevice), "upload of tables");
    address = static_cast<std::remove_reference_t<decltype(address)>>(place);
  };
  upload(pass.tables.taps, plan.taps, offsets[0]);
  upload(pass.tables.roots, plan.roots, offsets[1]);
  upload(pass.tables.mel_begin, plan.mel_begin, offsets[2]);
  upload(pass.tables.mel_weights, plan.mel_weights, offsets[3]);
  upload(pass.tables.spectrum_weights, plan.spectrum_weights, offsets[4]);
  upload(pass.tables.bin_begin, plan.bin_begin, offsets[5]);
  upload(pass.tables.bin_weights, plan.bin_weights, offsets[6]);
}

LogMel::LogMel(const LogMelSpec& spec, int device)
    : forward_(std::make_unique<Pass>()), backward_(std::make_unique<Pass>()) {
  const DeviceGuard guard(device);
  prepare(*forward_, spec, false, device);
  prepare(*backward_, spec, true, device);
}

LogMel::~LogMel() = default;

namespace {

LogMelInput input_of(const LogMel::Waveform& waveform) {
  return {waveform.int16 ? nullptr : static_cast<const float*>(waveform.samples),
          waveform.int16 ? static_cast<const std::int16_t*>(waveform.samples) : nullptr,
          waveform.count,
          waveform.cu_seqlens,
          waveform.cu_frames,
          waveform.clips,
          waveform.frames};
}

}  // namespace

void LogMel::forward(const Waveform& waveform, float* mels, void* stream) const {
  if (waveform.clips <= 0 || waveform.frames <= 0) return;
  const std::int64_t blocks = waveform.frames / forward_->sizes.frames + waveform.clips;
  forward_->launch(blocks, input_of(waveform), nullptr, mels, stream);
}

void LogMel::backward(const Waveform& waveform, const float* grad_mels, float* grad_waveform, void* stream) const {
  if (waveform.clips <= 0 || waveform.count <= 0) return;
  const std::int64_t blocks = waveform.count / backward_->sizes.owned + waveform.clips;
  backward_->launch(blocks, input_of(waveform), grad_mels, grad_waveform, stream);
}

}  // namespace slap_fast::cuda
