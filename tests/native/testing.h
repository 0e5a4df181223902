// Helpers of the standalone C++ tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace testing {

inline void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s (instruction set %s)\n", what.c_str(), slap_fast::isa_name(slap_fast::chosen_isa()));
  std::exit(1);
}

template <class Call>
void require_rejected(const std::string& what, Call call) {
  bool thrown = false;
  try {
    call();
  } catch (const std::invalid_argument&) {
    thrown = true;
  }
  require(thrown, what + " accepted");
}

inline std::vector<slap_fast::Isa> isas_of_this_machine() {
  std::vector<slap_fast::Isa> isas;
  for (slap_fast::Isa isa : slap_fast::compiled_isas())
    if (isa <= slap_fast::detected_isa()) isas.push_back(isa);
  return isas;
}

// Deterministic random numbers.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  bool once_in(std::int64_t times) { return between(1, times) == 1; }
  float uniform(float low, float high) { return low + (high - low) * static_cast<float>(engine_() >> 40) * 0x1p-24f; }
  template <class T>
  T of(const std::vector<T>& choices) {
    return choices[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(choices.size()) - 1))];
  }

 private:
  std::mt19937_64 engine_;
};

// Array of exactly `size` values, offset by `shift` values: it ends at the sanitizer's red zone and may be unaligned.
template <class T>
class ExactArray {
 public:
  ExactArray(std::int64_t size, std::int64_t shift)
      : size_(size), storage_(new T[static_cast<std::size_t>(size + shift)]), data_(storage_.get() + shift) {}
  T* data() const { return data_; }
  std::int64_t size() const { return size_; }
  T& operator[](std::int64_t i) const { return data_[i]; }

 private:
  std::int64_t size_;
  std::unique_ptr<T[]> storage_;
  T* data_;
};

// NaN payload that no arithmetic produces: marks values that were not written.
constexpr std::uint32_t kPoison = 0x7fedcba9u;

inline ExactArray<float> poisoned(std::int64_t size, std::int64_t shift) {
  ExactArray<float> values(size, shift);
  for (std::int64_t i = 0; i < size; ++i) std::memcpy(&values[i], &kPoison, sizeof kPoison);
  return values;
}

inline bool same_bits(const float* a, const float* b, std::int64_t count) {
  return count == 0 || std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(float)) == 0;
}

inline bool is_poison(const float& value) { return std::memcmp(&value, &kPoison, sizeof kPoison) == 0; }

}  // namespace testing
