// Python bindings of the CUDA kernels.
#pragma once

#include <pybind11/pybind11.h>

#include "log_mel_spec.h"

namespace slap_fast::cuda {

using SpecReader = LogMelSpec (*)(const pybind11::kwargs& fields);

void add_bindings(pybind11::module_& module, SpecReader read_spec);

}  // namespace slap_fast::cuda
