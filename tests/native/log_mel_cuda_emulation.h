// CPU emulation of the blocks of csrc/cuda/log_mel.cu, one thread at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "cuda/log_mel_fft_sizes.h"
#include "cuda/log_mel_phases.h"
#include "cuda/log_mel_plan.h"

namespace slap_fast::cuda {

// Runs the threads of a phase in an order that changes from phase to phase: results that depend on it would be races on
// a GPU.
class EmulatedThreads {
 public:
  EmulatedThreads(int threads, std::uint64_t seed) : order_(threads), state_(seed) {
    std::iota(order_.begin(), order_.end(), 0);
  }
  template <class Phase>
  void operator()(const Phase& phase) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    if (state_ >> 63) std::reverse(order_.begin(), order_.end());
    std::rotate(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>((state_ >> 33) % order_.size()),
                order_.end());
    for (int t : order_) phase(t);
  }

 private:
  std::vector<int> order_;
  std::uint64_t state_;
};

template <class Body>
void emulate_blocks(const LogMelPlan& plan, std::int64_t blocks, std::uint64_t seed, const Body& body) {
  // Fresh shared memory per block, filled with NaN to expose reads of uninitialized values.
  for (std::int64_t index = 0; index < blocks; ++index) {
    const std::unique_ptr<float[]> shared(new float[plan.sizes.shared_floats]);
    std::fill_n(shared.get(), plan.sizes.shared_floats, std::numeric_limits<float>::quiet_NaN());
    const LogMelTables tables = plan.tables();
    const LogMelBlock block{plan.sizes, tables, shared.get()};
    EmulatedThreads run(plan.sizes.threads, seed + static_cast<std::uint64_t>(index));
    const auto with = [&](auto transform) { body(transform, block, index, run); };
    if (!(plan.in_registers && visit_register_transform(plan.sizes.n_fft, with))) with(LoopTransform());
  }
}

inline void emulate_forward(const LogMelPlan& plan, const LogMelInput& input, float* output, std::uint64_t seed) {
  const std::int64_t blocks = input.clips ? input.frames / plan.sizes.frames + input.clips : 0;
  emulate_blocks(plan, blocks, seed, [&](auto transform, const LogMelBlock& block, std::int64_t index, auto& run) {
    forward_block<decltype(transform)>(block, input, output, index, run);
  });
}

inline void emulate_backward(const LogMelPlan& plan, const LogMelInput& input, const float* grad, float* grad_waveform,
                             std::uint64_t seed) {
  const std::int64_t blocks = input.clips ? input.samples / plan.sizes.owned + input.clips : 0;
  emulate_blocks(plan, blocks, seed, [&](auto transform, const LogMelBlock& block, std::int64_t index, auto& run) {
    BackwardState state;
    backward_block<decltype(transform)>(block, input, grad, grad_waveform, index, state, run);
  });
}

}  // namespace slap_fast::cuda
