// SwiGLU forward and backward against long double, on exactly sized arrays.
#include "cpu/swiglu.h"

#include <limits>

#include "native_tests.h"
#include "testing.h"

namespace testing {
namespace {

using slap_fast::DType;

void check_values(std::int64_t rows, std::int64_t width, int threads, Random& random) {
  const ExactArray<float> gate_up(2 * rows * width, random.between(0, 15)), grad(rows * width, random.between(0, 15));
  for (std::int64_t i = 0; i < gate_up.size(); ++i) gate_up[i] = random.uniform(-20.0f, 20.0f);
  for (std::int64_t i = 0; i < grad.size(); ++i) grad[i] = random.uniform(-2.0f, 2.0f);
  const ExactArray<float> out = poisoned(rows * width, random.between(0, 15));
  const ExactArray<float> grad_gate_up = poisoned(2 * rows * width, random.between(0, 15));
  slap_fast::swiglu({DType::float32, rows, width}, gate_up.data(), out.data(), threads);
  slap_fast::swiglu_backward({DType::float32, rows, width}, grad.data(), gate_up.data(), grad_gate_up.data(), threads);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < width; ++i) {
      const std::int64_t at = 2 * row * width + i;
      const long double gate = gate_up[at], up = gate_up[at + width], g = grad[row * width + i];
      const long double s = 1 / (1 + std::exp(-gate)), slope = s * (1 + gate * (1 - s));
      const auto near = [](float x, long double exact) {
        return std::fabs(x - exact) <= 1e-6L * (std::fabs(exact) + 1);
      };
      require(near(out[row * width + i], gate * s * up), "swiglu");
      require(near(grad_gate_up[at], g * up * slope), "gradient of gate");
      require(near(grad_gate_up[at + width], g * gate * s), "gradient of up");
    }
  }
}

// Random bit patterns: checks out-of-bounds accesses and bitwise independence of the thread count only.
void check_halves(DType dtype, std::int64_t rows, std::int64_t width, Random& random) {
  const ExactArray<std::uint16_t> gate_up(2 * rows * width, random.between(0, 15)), grad(rows * width, 1);
  for (std::int64_t i = 0; i < gate_up.size(); ++i) gate_up[i] = static_cast<std::uint16_t>(random.between(0, 65535));
  for (std::int64_t i = 0; i < grad.size(); ++i) grad[i] = static_cast<std::uint16_t>(random.between(0, 65535));
  std::vector<std::vector<std::uint16_t>> results;
  for (int threads : {-1, 1, 64}) {
    const ExactArray<std::uint16_t> out(rows * width, 1), grad_gate_up(2 * rows * width, 3);
    slap_fast::swiglu({dtype, rows, width}, gate_up.data(), out.data(), threads);
    slap_fast::swiglu_backward({dtype, rows, width}, grad.data(), gate_up.data(), grad_gate_up.data(), threads);
    results.emplace_back(out.data(), out.data() + out.size());
    results.back().insert(results.back().end(), grad_gate_up.data(), grad_gate_up.data() + grad_gate_up.size());
    require(results.back() == results.front(), "bits differ between thread counts");
  }
}

}  // namespace

void test_swiglu() {
  for (slap_fast::Isa isa : isas_of_this_machine()) {
    slap_fast::force_isa(slap_fast::isa_name(isa));
    Random random(13);
    for (std::int64_t width : {0, 1, 3, 4, 8, 15, 16, 17, 33, 100}) {
      for (std::int64_t rows : {0, 1, 7}) {
        for (int threads : {-1, 1, 3}) check_values(rows, width, threads, random);
        check_halves(DType::bfloat16, rows, width, random);
        check_halves(DType::float16, rows, width, random);
      }
    }
    check_halves(DType::bfloat16, 300, 500, random);  // large enough to use several threads
    for (std::int64_t size : {std::int64_t{-1}, -std::numeric_limits<std::int64_t>::max()}) {
      require_rejected("negative rows", [&] { slap_fast::swiglu({DType::float32, size, 4}, nullptr, nullptr, 1); });
      require_rejected("negative width",
                       [&] { slap_fast::swiglu_backward({DType::float32, 4, size}, nullptr, nullptr, nullptr, 1); });
    }
  }
}

}  // namespace testing
