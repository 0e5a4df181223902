// RMSNorm and its gradients against long double: all dtypes and widths, and no out-of-bounds accesses.
#include "cpu/rms_norm.h"

#include <limits>

#include "native_tests.h"
#include "testing.h"

namespace testing {
namespace {

using slap_fast::DType;
using slap_fast::RmsNormShape;

// Values of any dtype. 16-bit rounding itself is tested with rotary.
struct Values {
  DType dtype;
  ExactArray<float> wide;
  ExactArray<std::uint16_t> narrow;

  Values(Random& random, DType dtype_, std::int64_t size)
      : dtype(dtype_),
        wide(poisoned(dtype_ == DType::float32 ? size : 0, random.between(0, 15))),
        narrow(dtype_ == DType::float32 ? 0 : size, random.between(0, 31)) {
    for (std::int64_t i = 0; i < narrow.size(); ++i) narrow[i] = 0x7fed;
  }
  void* data() const { return dtype == DType::float32 ? static_cast<void*>(wide.data()) : narrow.data(); }
  std::int64_t size() const { return wide.size() + narrow.size(); }
  double operator[](std::int64_t i) const {
    if (dtype == DType::float32) return static_cast<double>(wide[i]);
    const int mantissa_bits = dtype == DType::bfloat16 ? 7 : 10, bias = dtype == DType::bfloat16 ? 127 : 15;
    const int exponent = (narrow[i] & 0x7fff) >> mantissa_bits, mantissa = narrow[i] & ((1 << mantissa_bits) - 1);
    if (exponent == 2 * bias + 1) return std::numeric_limits<double>::quiet_NaN();
    const double magnitude = exponent == 0
                                 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                 : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
    return narrow[i] & 0x8000 ? -magnitude : magnitude;
  }
  // Multiples of 1/8 in [-2, 2], exact in every dtype.
  void fill(Random& random) {
    for (std::int64_t i = 0; i < size(); ++i) {
      const double value = static_cast<double>(random.between(-16, 16)) / 8.0;
      if (dtype == DType::float32) {
        wide[i] = static_cast<float>(value);
        continue;
      }
      int exponent;
      const double fraction = std::frexp(std::fabs(value), &exponent);
      const int mantissa_bits = dtype == DType::bfloat16 ? 7 : 10, bias = dtype == DType::bfloat16 ? 127 : 15;
      const int mantissa = static_cast<int>(std::ldexp(2.0 * fraction - 1.0, mantissa_bits));
      const int bits = value == 0.0 ? 0 : (exponent - 1 + bias) << mantissa_bits | mantissa;
      narrow[i] = static_cast<std::uint16_t>(bits | (value < 0.0 ? 0x8000 : 0));
    }
  }
};

double roundoff(DType dtype) {
  if (dtype == DType::bfloat16) return 0x1p-8;
  return dtype == DType::float16 ? 0x1p-11 : 0x1p-21;
}

void require_near(double actual, long double exact, double size, DType dtype, const char* what) {
  // 2^-24 is the spacing of float16 subnormals.
  require(std::fabs(actual - static_cast<double>(exact)) <= 2 * roundoff(dtype) * size + 0x1p-24, what);
}

struct Tensors {
  Values x, residual, weight, sum, normed, grad_normed, grad_sum, grad, grad_weight;
  ExactArray<float> rstd;

  Tensors(Random& random, DType dtype, std::int64_t rows, std::int64_t width)
      : x(random, dtype, rows * width),
        residual(random, dtype, rows * width),
        weight(random, dtype, width),
        sum(random, dtype, rows * width),
        normed(random, dtype, rows * width),
        grad_normed(random, dtype, rows * width),
        grad_sum(random, dtype, rows * width),
        grad(random, dtype, rows * width),
        grad_weight(random, dtype, width),
        rstd(poisoned(rows, random.between(0, 15))) {
    for (Values* values : {&x, &residual, &weight, &grad_normed, &grad_sum}) values->fill(random);
  }
};

constexpr float kEps = 0.25f;

void check_forward(const RmsNormShape& shape, const Tensors& t, bool has_residual) {
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    long double squares = 0.0L;
    for (std::int64_t i = row * shape.width; i < (row + 1) * shape.width; ++i) {
      if (has_residual) require(t.sum[i] == t.x[i] + t.residual[i], "sum of two rows");
      const long double value = has_residual ? t.sum[i] : t.x[i];
      squares += value * value;
    }
    const long double rstd = 1.0L / std::sqrt(squares / shape.width + static_cast<long double>(kEps));
    require_near(t.rstd[row], rstd, static_cast<double>(rstd), DType::float32, "rstd");
    for (std::int64_t i = row * shape.width; i < (row + 1) * shape.width; ++i) {
      const long double exact = (has_residual ? t.sum[i] : t.x[i]) * rstd * t.weight[i % shape.width];
      require_near(t.normed[i], exact, std::fabs(static_cast<double>(exact)), shape.dtype, "normalized row");
    }
  }
}

void check_backward(const RmsNormShape& shape, const Tensors& t, const Values& sum, bool has_residual) {
  std::vector<long double> grad_weight(static_cast<std::size_t>(shape.width));
  double largest = 0.0;
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    const std::int64_t begin = row * shape.width;
    const long double rstd = t.rstd[row];
    long double product = 0.0L;
    for (std::int64_t i = 0; i < shape.width; ++i) {
      const long double slope = t.grad_normed[begin + i] * sum[begin + i] * rstd;
      product += slope * t.weight[i];
      grad_weight[static_cast<std::size_t>(i)] += slope;
      largest += std::fabs(static_cast<double>(slope));
    }
    for (std::int64_t i = 0; i < shape.width; ++i) {
      long double exact = t.grad_normed[begin + i] * t.weight[i] - sum[begin + i] * rstd * product / shape.width;
      exact = exact * rstd + (has_residual ? t.grad_sum[begin + i] : 0.0);
      require_near(t.grad[begin + i], exact, 32.0, shape.dtype, "gradient of the sum");
    }
  }
  for (std::int64_t i = 0; i < shape.width; ++i)
    require_near(t.grad_weight[i], grad_weight[static_cast<std::size_t>(i)], largest, shape.dtype,
                 "gradient of the weight");
}

void check_call(Random& random) {
  const RmsNormShape shape{random.of<DType>({DType::float32, DType::bfloat16, DType::float16}),
                           random.of<std::int64_t>({0, 1, 2, 31, 32, 33, 70}),
                           random.of<std::int64_t>({1, 3, 4, 8, 15, 16, 17, 63, 64, 65, 130})};
  const int threads = random.of<int>({-1, 0, 1, 3, 64});
  const bool has_residual = random.once_in(2);
  Tensors t(random, shape.dtype, shape.rows, shape.width);
  slap_fast::rms_norm(shape,
                      {t.x.data(), has_residual ? t.residual.data() : nullptr, t.weight.data(), kEps,
                       has_residual ? t.sum.data() : nullptr, t.normed.data(), t.rstd.data()},
                      threads);
  check_forward(shape, t, has_residual);
  const Values& sum = has_residual ? t.sum : t.x;
  slap_fast::rms_norm_backward(shape,
                               {t.grad_normed.data(), has_residual ? t.grad_sum.data() : nullptr, sum.data(),
                                t.weight.data(), t.rstd.data(), t.grad.data(), t.grad_weight.data()},
                               threads);
  check_backward(shape, t, sum, has_residual);
}

}  // namespace

void test_rms_norm() {
  for (slap_fast::Isa isa : isas_of_this_machine()) {
    slap_fast::force_isa(slap_fast::isa_name(isa));
    Random random(13);
    for (int trial = 0; trial < 60; ++trial) check_call(random);
    for (const auto& [rows, width] : std::vector<std::pair<std::int64_t, std::int64_t>>{{-1, 4}, {4, -1}}) {
      const RmsNormShape shape{DType::float32, rows, width};
      require_rejected("a negative size", [&] { slap_fast::rms_norm(shape, {}, 1); });
      require_rejected("a negative size", [&] { slap_fast::rms_norm_backward(shape, {}, 1); });
    }
    for (float eps : {-1.0f, NAN})
      require_rejected("eps", [&] {
        slap_fast::RmsNormForward tensors{};
        tensors.eps = eps;
        slap_fast::rms_norm({DType::float32, 0, 4}, tensors, 1);
      });
  }
}

}  // namespace testing
