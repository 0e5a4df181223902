// The only file that knows Python. Arrays come as addresses and sizes, so that no torch header is needed and one build
// serves every torch; the callers in slap_fast/ops check types, devices and shapes before they hand an address over.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/waveform_stats.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

std::vector<std::string> compiled_names() {
  std::vector<std::string> names;
  for (slap_fast::Isa isa : slap_fast::compiled_isas()) names.emplace_back(slap_fast::isa_name(isa));
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.attr("__version__") = SLAP_FAST_VERSION;

  module.def("compiled_isas", &compiled_names);
  module.def("detected_isa", [] { return slap_fast::isa_name(slap_fast::detected_isa()); });
  module.def("chosen_isa", [] { return slap_fast::isa_name(slap_fast::chosen_isa()); });
  module.def("force_isa", &slap_fast::force_isa, py::arg("name"));

  module.def(
      "waveform_stats",
      [](Address waveform, std::int64_t total, Address cu_seqlens, std::int64_t clips, Address peak,
         Address mean_square, Address nonfinite, int threads) {
        slap_fast::waveform_stats(at<const float>(waveform), total, at<const std::int64_t>(cu_seqlens), clips,
                                  at<float>(peak), at<double>(mean_square), at<std::int64_t>(nonfinite), threads);
      },
      py::arg("waveform"), py::arg("total"), py::arg("cu_seqlens"), py::arg("clips"), py::arg("peak"),
      py::arg("mean_square"), py::arg("nonfinite"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}
