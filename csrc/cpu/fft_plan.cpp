#include "fft_plan.h"

#include <algorithm>
#include <cmath>

namespace slap_fast {
namespace {

constexpr double kTwoPi = 6.283185307179586476925286766559;

// Large radices first, for fewer passes over the data. The remainder is split into prime factors, at quadratic cost
// each.
std::vector<std::int64_t> radices_of(std::int64_t size) {
  std::vector<std::int64_t> radices;
  for (std::int64_t radix : {8, 5, 4, 3, 2})
    for (; size % radix == 0; size /= radix) radices.push_back(radix);
  for (std::int64_t prime = 7; size > 1; prime += 2) {
    if (prime * prime > size) prime = size;
    for (; size % prime == 0; size /= prime) radices.push_back(prime);
  }
  return radices;
}

void append_root(std::vector<float>& table, std::int64_t numerator, std::int64_t denominator) {
  const double angle = -kTwoPi * static_cast<double>(numerator % denominator) / static_cast<double>(denominator);
  table.push_back(static_cast<float>(std::cos(angle)));
  table.push_back(static_cast<float>(std::sin(angle)));
}

}  // namespace

FftPlan::FftPlan(std::int64_t size) : size_(size), slots_(static_cast<std::size_t>(size)) {
  const std::vector<std::int64_t> radices = radices_of(size);
  std::int64_t length = size;
  for (std::int64_t radix : radices) {
    const std::int64_t step = length / radix;
    std::vector<float> twiddles, roots;
    for (std::int64_t j = 0; j < step; ++j)
      for (std::int64_t q = 1; q < radix; ++q) append_root(twiddles, j * q, length);
    for (std::int64_t q = 0; q < radix; ++q) append_root(roots, q, radix);
    tables_.push_back(std::move(twiddles));
    tables_.push_back(std::move(roots));
    stages_.push_back({radix, step, tables_[tables_.size() - 2].data(), tables_.back().data()});
    max_radix_ = std::max(max_radix_, radix);
    length = step;
  }
  // Mixed-radix digit reversal: a slot's digits, first stage first, are its frequency's digits, least significant
  // first.
  for (std::int64_t slot = 0; slot < size; ++slot) {
    std::int64_t frequency = 0, weight = 1, remainder = slot;
    for (const FftStageView& stage : stages_) {
      frequency += remainder / stage.step * weight;
      remainder %= stage.step;
      weight *= stage.radix;
    }
    slots_[static_cast<std::size_t>(frequency)] = static_cast<std::int32_t>(slot + slot / block());
  }
}

std::int64_t FftPlan::block() const { return stages_.empty() ? 1 : stages_.front().step; }

FftView FftPlan::view() const {
  return {size_,          static_cast<std::int64_t>(stages_.size()),
          stages_.data(), slots_.data(),
          block(),        size_ + size_ / block(),
          max_radix_};
}

}  // namespace slap_fast
