// Mixed-radix plan of an in-place complex FFT of any size, executed by fft_lanes.h.
#pragma once

#include <cstdint>
#include <vector>

#include "fft_plan_view.h"

namespace slap_fast {

class FftPlan {
 public:
  explicit FftPlan(std::int64_t size);
  FftPlan(const FftPlan&) = delete;
  FftPlan& operator=(const FftPlan&) = delete;
  FftView view() const;

 private:
  std::int64_t block() const;

  std::int64_t size_;
  std::vector<std::vector<float>> tables_;
  std::vector<FftStageView> stages_;
  std::vector<std::int32_t> slots_;
  std::int64_t max_radix_ = 1;
};

}  // namespace slap_fast
