#include "cuda/bindings.h"

#include <cstdint>
#include <memory>

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
