// fn.slap_fast.flac(device="mixed"): the bytes of the files go to the GPU, which decodes them.
#include <cstring>

#include "cuda/flac.h"
#include "dali/core/cuda_error.h"
#include "dali/kernels/dynamic_scratchpad.h"
#include "flac_operator.h"
#include "flac_packing.h"

namespace slap_fast::dali_plugin {

class FlacMixed : public FlacOperator<::dali::MixedBackend> {
 public:
  using FlacOperator::FlacOperator;

 protected:
  void RunImpl(::dali::Workspace& workspace) override {
    const auto files = static_cast<std::int64_t>(clips_.size());
    if (files == 0) return;
    auto& waveforms = workspace.Output<::dali::GPUBackend>(0);
    auto& rates = workspace.Output<::dali::GPUBackend>(1);
    auto& errors = workspace.Output<::dali::GPUBackend>(2);
    for (const auto* output : {&waveforms, &rates, &errors})
      if (output->nbytes() > 0 && !output->IsContiguousInMemory())
        throw std::logic_error("DALI gave an output that is not contiguous");

    // Pinned memory, which the scratchpad frees when the stream has read it.
    const cudaStream_t stream = workspace.stream();
    ::dali::kernels::DynamicScratchpad scratch(::dali::AccessOrder{stream});
    const Packing packing(clips_);
    const auto numbers = static_cast<std::int64_t>(packing.offsets.size());
    auto* staged_numbers = pinned<std::int64_t>(scratch, 2 * numbers);
    auto* staged_rates = pinned<float>(scratch, files);
    auto* staged_errors = pinned<std::int32_t>(scratch, files);
    auto* staged_bytes = pinned<std::uint8_t>(scratch, packing.bytes);
    std::copy(packing.offsets.begin(), packing.offsets.end(), staged_numbers);
    std::copy(packing.rows.begin(), packing.rows.end(), staged_numbers + numbers);
    auto& pool = workspace.GetThreadPool();
    for (std::int64_t i = 0; i < files; ++i) {
      const Clip& clip = clips_[i];
      staged_rates[i] = static_cast<float>(clip.sample_rate);
      staged_errors[i] = static_cast<std::int32_t>(clip.error);
      if (clip.error != flac::Error::ok) continue;
      auto* target = staged_bytes + packing.starts[i];
      pool.AddWork([&clip, target](int) { std::memcpy(target, clip.bytes, clip.size); }, clip.size);
    }
    pool.RunAll();

    auto* device_numbers = device<std::int64_t>(scratch, 2 * numbers);
    auto* device_bytes = device<std::uint8_t>(scratch, packing.bytes);
    upload(device_numbers, staged_numbers, 2 * numbers * sizeof(std::int64_t), stream);
    upload(device_bytes, staged_bytes, packing.bytes, stream);
    upload(rates.mutable_tensor<float>(0), staged_rates, files * sizeof(float), stream);
    auto* error = errors.mutable_tensor<std::int32_t>(0);
    for (const Packing::Run& run : packing.runs) {
      const FlacBatch batch =
          packing.batch(run, device_bytes, device_numbers, device_numbers + numbers, limits_,
                        waveforms.raw_mutable_tensor(static_cast<int>(run.first)), error + run.first);
      auto* memory = device<std::uint8_t>(scratch, cuda::flac_workspace_bytes(batch, run.rows));
      cuda::decode_flac(batch, run.bytes, run.rows, memory, stream);
    }
    // What is wrong with a header, which the kernel does not see.
    for (std::int64_t i = 0; i < files; ++i)
      if (clips_[i].error != flac::Error::ok) upload(error + i, staged_errors + i, sizeof(std::int32_t), stream);
  }

 private:
  template <typename T>
  static T* pinned(::dali::kernels::DynamicScratchpad& scratch, std::int64_t count) {
    return scratch.Allocate<::dali::mm::memory_kind::pinned, T>(std::max<std::int64_t>(count, 1));
  }

  template <typename T>
  static T* device(::dali::kernels::DynamicScratchpad& scratch, std::int64_t count) {
    return scratch.Allocate<::dali::mm::memory_kind::device, T>(std::max<std::int64_t>(count, 1), 256);
  }

  static void upload(void* target, const void* staged, std::int64_t bytes, cudaStream_t stream) {
    if (bytes > 0) CUDA_CALL(cudaMemcpyAsync(target, staged, bytes, cudaMemcpyHostToDevice, stream));
  }
};

}  // namespace slap_fast::dali_plugin

DALI_REGISTER_OPERATOR(slap_fast__Flac, ::slap_fast::dali_plugin::FlacMixed, ::dali::Mixed);
