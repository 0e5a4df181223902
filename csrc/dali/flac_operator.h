// What the operators on the CPU and on the GPU share: arguments, and the shapes of the outputs.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "dali/pipeline/operator/checkpointing/stateless_operator.h"
#include "flac_clip.h"

namespace slap_fast::dali_plugin {

inline flac::Verify verification(const std::string& name) {
  if (name == "none") return flac::Verify::none;
  if (name == "crc") return flac::Verify::crc;
  if (name == "md5") return flac::Verify::md5;
  throw std::invalid_argument("verify is '" + name + "'; choose 'none', 'crc' or 'md5'");
}

inline flac::SampleType sample_type(::dali::DALIDataType type) {
  if (type == DALI_FLOAT) return flac::SampleType::float32;
  if (type == DALI_INT32) return flac::SampleType::int32;
  if (type == DALI_INT16) return flac::SampleType::int16;
  throw std::invalid_argument("dtype is not one of those that FLAC can be decoded to: FLOAT, INT32, INT16");
}

template <typename Backend>
class FlacOperator : public ::dali::StatelessOperator<Backend> {
 public:
  explicit FlacOperator(const ::dali::OpSpec& spec)
      : ::dali::StatelessOperator<Backend>(spec), dtype_(spec.GetArgument<::dali::DALIDataType>("dtype")) {
    limits_.mono = spec.GetArgument<bool>("mono");
    limits_.max_samples = spec.GetArgument<std::int64_t>("max_samples");
    limits_.dtype = sample_type(dtype_);
    limits_.verify = verification(spec.GetArgument<std::string>("verify"));
    if (limits_.max_samples < 0)
      throw std::invalid_argument("max_samples is " + std::to_string(limits_.max_samples) + "; it must be at least 0");
  }

 protected:
  bool SetupImpl(std::vector<::dali::OutputDesc>& outputs, const ::dali::Workspace& workspace) override {
    const auto& encoded = workspace.Input<::dali::CPUBackend>(0);
    if (encoded.type() != DALI_UINT8 || encoded.sample_dim() != 1)
      throw std::invalid_argument("the input is not one-dimensional uint8: pass the bytes of whole FLAC files");
    const int count = encoded.num_samples();
    ::dali::TensorListShape<> shape(count, limits_.mono ? 1 : 2);
    clips_.clear();
    for (int i = 0; i < count; ++i) {
      const auto* bytes = static_cast<const std::uint8_t*>(encoded.raw_tensor(i));
      clips_.push_back(read_clip(bytes, encoded.tensor_shape_span(i)[0], limits_));
      auto sample = shape.tensor_shape_span(i);
      sample[0] = clips_[i].samples;
      if (!limits_.mono) sample[1] = clips_[i].channels;
    }
    const ::dali::TensorListShape<> scalars = ::dali::uniform_list_shape(count, ::dali::TensorShape<>{});
    outputs.clear();
    outputs.push_back({shape, dtype_});
    outputs.push_back({scalars, DALI_FLOAT});
    outputs.push_back({scalars, DALI_INT32});
    return true;
  }

  const ::dali::DALIDataType dtype_;
  ClipLimits limits_;
  std::vector<Clip> clips_;  // of the batch between SetupImpl and RunImpl
};

}  // namespace slap_fast::dali_plugin
