// fn.slap_fast.flac on the CPU: a file per task of DALI's thread pool.
#include "flac_operator.h"

namespace slap_fast::dali_plugin {

class FlacCpu : public FlacOperator<::dali::CPUBackend> {
 public:
  using FlacOperator::FlacOperator;

 protected:
  void RunImpl(::dali::Workspace& workspace) override {
    auto& waveforms = workspace.Output<::dali::CPUBackend>(0);
    auto& rates = workspace.Output<::dali::CPUBackend>(1);
    auto& errors = workspace.Output<::dali::CPUBackend>(2);
    auto& pool = workspace.GetThreadPool();
    for (int i = 0; i < static_cast<int>(clips_.size()); ++i) {
      *rates.mutable_tensor<float>(i) = static_cast<float>(clips_[i].sample_rate);
      const auto task = [this, i, waveform = waveforms.raw_mutable_tensor(i),
                         error = errors.mutable_tensor<std::int32_t>(i)](int) { decode(clips_[i], waveform, error); };
      // By size: a long file that comes last would keep the other threads waiting.
      pool.AddWork(task, clips_[i].size);
    }
    pool.RunAll();
  }

 private:
  void decode(const Clip& clip, void* waveform, std::int32_t* error) const {
    *error = static_cast<std::int32_t>(clip.error);
    if (clip.error != flac::Error::ok) return;  // the waveform has no samples
    const std::int64_t offsets[] = {0, clip.size}, rows[] = {0, clip.samples};
    FlacBatch batch{};
    batch.data = clip.bytes;
    batch.offsets = offsets;
    batch.files = 1;
    batch.cu_seqlens = rows;
    batch.channels = clip.channels;
    batch.dtype = limits_.dtype;
    batch.output = waveform;
    batch.errors = error;
    batch.verify = limits_.verify;
    decode_flac(batch, clip.size, clip.samples, 1);
  }
};

#if !defined(SLAP_FAST_HAS_CUDA)
// Registered all the same: without it, DALI would say that the operator does not exist.
class FlacWithoutCuda : public FlacOperator<::dali::MixedBackend> {
 public:
  explicit FlacWithoutCuda(const ::dali::OpSpec& spec) : FlacOperator(spec) {
    throw std::runtime_error(
        "this plugin was built without its CUDA code: install nvcc (pip install 'cuda-toolkit[nvcc]'), set "
        "SLAP_FAST_CUDA=1, and call slap_fast.integrations.dali.register() in a new process");
  }

 protected:
  void RunImpl(::dali::Workspace&) override {}
};
#endif

}  // namespace slap_fast::dali_plugin

DALI_REGISTER_OPERATOR(slap_fast__Flac, ::slap_fast::dali_plugin::FlacCpu, ::dali::CPU);
#if !defined(SLAP_FAST_HAS_CUDA)
DALI_REGISTER_OPERATOR(slap_fast__Flac, ::slap_fast::dali_plugin::FlacWithoutCuda, ::dali::Mixed);
#endif
