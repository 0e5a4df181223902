// FFT sizes with a specialized kernel; other sizes use LoopTransform.
#pragma once

#include "log_mel_transforms.h"

namespace slap_fast::cuda {

// Calls visit(transform) with the specialization for n_fft; returns false if there is none.
template <class Visit>
bool visit_register_transform(int n_fft, Visit&& visit) {
  switch (n_fft) {
    case 256:
      visit(RegisterTransform<16, 16, 32>());
      return true;
    case 400:
      visit(RegisterTransform<20, 20, 32>());
      return true;
    case 512:
      visit(RegisterTransform<32, 16, 32>());
      return true;
    case 1024:
      visit(RegisterTransform<32, 32, 16>());
      return true;
    case 2048:
      visit(RegisterTransform<64, 32, 8>());
      return true;
    default:
      return false;
  }
}

}  // namespace slap_fast::cuda
