#include "cuda/bindings.h"

#include <cstdint>
#include <memory>

#include "cuda/flac.h"
#include "cuda/log_mel.h"

namespace py = pybind11;

namespace slap_fast::cuda {
namespace {

using Address = std::uintptr_t;

LogMel::Waveform waveform_of(Address waveform, bool int16, std::int64_t samples, Address cu_seqlens, Address cu_frames,
                             std::int64_t clips, std::int64_t frames) {
  return {reinterpret_cast<const void*>(waveform),
          int16,
          samples,
          reinterpret_cast<const std::int64_t*>(cu_seqlens),
          reinterpret_cast<const std::int64_t*>(cu_frames),
          clips,
          frames};
}

}  // namespace

void add_bindings(py::module_& module, SpecReader read_spec) {
  module.def("cuda_unavailable", &unavailable, py::call_guard<py::gil_scoped_release>());

  module.def(
      "cuda_flac_workspace",
      [](std::int64_t files, std::int64_t rows, int channels, int dtype) {
        FlacBatch batch{};
        batch.files = files;
        batch.channels = channels;
        batch.dtype = static_cast<flac::SampleType>(dtype);
        return flac_workspace_bytes(batch, rows);
      },
      py::arg("files"), py::arg("rows"), py::arg("channels"), py::arg("dtype"));

  module.def(
      "cuda_decode_flac",
      [](Address data, std::int64_t bytes, Address offsets, std::int64_t files, Address starts, Address cu_seqlens,
         std::int64_t rows, int channels, int dtype, Address output, Address errors, int verify, Address workspace,
         int device, Address stream) {
        const FlacBatch batch{reinterpret_cast<const std::uint8_t*>(data),
                              reinterpret_cast<const std::int64_t*>(offsets),
                              files,
                              reinterpret_cast<const std::int64_t*>(starts),
                              reinterpret_cast<const std::int64_t*>(cu_seqlens),
                              channels,
                              static_cast<flac::SampleType>(dtype),
                              reinterpret_cast<void*>(output),
                              reinterpret_cast<std::int32_t*>(errors),
                              static_cast<flac::Verify>(verify)};
        decode_flac(batch, bytes, rows, reinterpret_cast<void*>(workspace), reinterpret_cast<void*>(stream), device);
      },
      py::arg("data"), py::arg("bytes"), py::arg("offsets"), py::arg("files"), py::arg("starts"), py::arg("cu_seqlens"),
      py::arg("rows"), py::arg("channels"), py::arg("dtype"), py::arg("output"), py::arg("errors"), py::arg("verify"),
      py::arg("workspace"), py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());

  py::class_<LogMel>(module, "CudaLogMel")
      .def(py::init([read_spec](int device, const py::kwargs& spec) {
             return std::make_unique<LogMel>(read_spec(spec), device);
           }),
           py::arg("device"))
      .def(
          "forward",
          [](const LogMel& self, Address waveform, bool int16, std::int64_t samples, Address cu_seqlens,
             Address cu_frames, std::int64_t clips, std::int64_t frames, Address mels, Address stream) {
            self.forward(waveform_of(waveform, int16, samples, cu_seqlens, cu_frames, clips, frames),
                         reinterpret_cast<float*>(mels), reinterpret_cast<void*>(stream));
          },
          py::arg("waveform"), py::arg("int16"), py::arg("samples"), py::arg("cu_seqlens"), py::arg("cu_frames"),
          py::arg("clips"), py::arg("frames"), py::arg("mels"), py::arg("stream"),
          py::call_guard<py::gil_scoped_release>())
      .def(
          "backward",
          [](const LogMel& self, Address waveform, bool int16, std::int64_t samples, Address cu_seqlens,
             Address cu_frames, std::int64_t clips, std::int64_t frames, Address grad_mels, Address grad_waveform,
             Address stream) {
            self.backward(waveform_of(waveform, int16, samples, cu_seqlens, cu_frames, clips, frames),
                          reinterpret_cast<const float*>(grad_mels), reinterpret_cast<float*>(grad_waveform),
                          reinterpret_cast<void*>(stream));
          },
          py::arg("waveform"), py::arg("int16"), py::arg("samples"), py::arg("cu_seqlens"), py::arg("cu_frames"),
          py::arg("clips"), py::arg("frames"), py::arg("grad_mels"), py::arg("grad_waveform"), py::arg("stream"),
          py::call_guard<py::gil_scoped_release>());
}

}  // namespace slap_fast::cuda
