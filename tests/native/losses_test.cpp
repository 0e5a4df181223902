// Fused losses over score rows against long double: all strides and dtypes, and no out-of-bounds writes.
#include <algorithm>
#include <limits>

#include "cpu/linear_cross_entropy.h"
#include "cpu/prototype_cross_entropy.h"
#include "native_tests.h"
#include "testing.h"

namespace testing {
namespace {

using slap_fast::DType;
using slap_fast::ScoreRows;
using Row = std::vector<long double>;

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

struct Shape {
  std::int64_t rows, columns, stride;
  int threads;

  explicit Shape(Random& random)
      : rows(random.of<std::int64_t>({0, 1, 2, 15, 16, 17, 63, 64, 65, 130})),
        columns(random.of<std::int64_t>({1, 2, 7, 15, 16, 17, 31, 64, 65, 200})),
        stride((columns + 15) / 16 * 16 + 16 * random.between(0, 2)),
        threads(random.of<int>({-1, 0, 1, 3, 64})) {}

  ExactArray<float> scores(Random& random, float size) const {
    ExactArray<float> values = poisoned(rows * stride, random.between(0, 15));
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j) values[i * stride + j] = random.uniform(-size, size);
    return values;
  }
  Row row(const ExactArray<float>& scores, std::int64_t i) const {
    return Row(scores.data() + i * stride, scores.data() + i * stride + columns);
  }
};

long double log_sum_exp(const Row& x) {
  const long double largest = *std::max_element(x.begin(), x.end());
  long double sum = 0.0L;
  for (long double value : x) sum += std::exp(value - largest);
  return largest + std::log(sum);
}

Row softmax(const Row& x) {
  const long double lse = log_sum_exp(x);
  Row probabilities;
  for (long double value : x) probabilities.push_back(std::exp(value - lse));
  return probabilities;
}

bool near(long double actual, long double expected, long double tolerance) {
  return std::fabs(actual - expected) <= tolerance * (1.0L + std::fabs(expected));
}

// Reads back gradients of any dtype (or none) from the scores' memory.
class GradientReader {
 public:
  GradientReader(Random& random, const Shape& shape, const ExactArray<float>& scores)
      : dtype(random.of<slap_fast::GradDType>({std::nullopt, DType::float32, DType::bfloat16})),
        shape_(shape),
        scores_(scores) {}

  void check(std::int64_t row, const Row& expected, const std::string& what) const {
    for (std::int64_t j = 0; dtype && j < shape_.columns; ++j) {
      const long double relative = dtype == DType::bfloat16 ? 0x1p-8L : 0.0L;
      require(std::fabs(at(row, j) - expected[index(j)]) <= relative * std::fabs(expected[index(j)]) + 5e-6L, what);
    }
  }
  bool is_nan(std::int64_t row) const {
    for (std::int64_t j = 0; dtype && j < shape_.columns; ++j)
      if (!std::isnan(at(row, j))) return false;
    return true;
  }

  const slap_fast::GradDType dtype;

 private:
  float at(std::int64_t row, std::int64_t j) const {
    const float* begin = scores_.data() + row * shape_.stride;
    if (dtype == DType::float32) return begin[j];
    std::uint16_t half;
    std::memcpy(&half, reinterpret_cast<const char*>(begin) + 2 * j, sizeof half);
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }

  const Shape& shape_;
  const ExactArray<float>& scores_;
};

void check_linear_cross_entropy(Random& random) {
  const Shape shape(random);
  const ExactArray<float> logits = shape.scores(random, random.of<float>({0.5f, 20.0f, 80.0f}));
  const slap_fast::TokenLoss loss{random.of<double>({0.0, 0.1, 1.0}), random.of<double>({0.0, 0.01})};
  ExactArray<std::int64_t> target(shape.rows, 0);
  const bool invalid = random.once_in(3);
  long double expected = 0.0L;
  std::vector<Row> gradients;
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    const bool bad = invalid && i == shape.rows / 2;
    const auto kInt64Max = std::numeric_limits<std::int64_t>::max();
    target[i] = bad ? random.of<std::int64_t>({-1, shape.columns, kInt64Max, -kInt64Max})
                    : random.between(0, shape.columns - 1);
    const Row x = shape.row(logits, i);
    const long double lse = log_sum_exp(x), columns = static_cast<long double>(shape.columns);
    const long double smoothing = loss.label_smoothing;
    long double mean = 0.0L;
    for (long double value : x) mean += value / columns;
    Row gradient = softmax(x);
    for (long double& value : gradient) value = value * (1 + 2 * loss.z_loss * lse) - smoothing / columns;
    if (!bad) {
      gradient[index(target[i])] -= 1 - smoothing;
      expected += lse - (1 - smoothing) * x[index(target[i])] - smoothing * mean + loss.z_loss * lse * lse;
    }
    gradients.push_back(gradient);
  }
  const GradientReader reader(random, shape, logits);
  const double total = slap_fast::linear_cross_entropy({logits.data(), shape.rows, shape.columns, shape.stride},
                                                       target.data(), loss, reader.dtype, shape.threads);
  const bool any_invalid = invalid && shape.rows > 0;
  require(any_invalid ? std::isnan(total) : near(total, expected, 2e-6L), "linear_cross_entropy");
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    if (any_invalid && i == shape.rows / 2)
      require(reader.is_nan(i), "gradient of a target outside the vocabulary");
    else
      reader.check(i, gradients[index(i)], "gradient of logits");
  }
}

Row logits_of(const Row& scores, float temperature, const ExactArray<float>& potential) {
  Row logits;
  for (std::size_t j = 0; j < scores.size(); ++j)
    logits.push_back(scores[j] / temperature - (potential.size() ? potential[static_cast<std::int64_t>(j)] : 0.0f));
  return logits;
}

ExactArray<float> random_potential(Random& random, std::int64_t columns) {
  ExactArray<float> potential(random.once_in(3) ? 0 : columns, random.between(0, 15));
  for (std::int64_t j = 0; j < potential.size(); ++j) potential[j] = random.uniform(-5.0f, 5.0f);
  return potential;
}

const float* data_or_null(const ExactArray<float>& potential) { return potential.size() ? potential.data() : nullptr; }

// Accumulates the masses of two batches of tokens, at temperatures where plain exponentials would underflow.
void check_sinkhorn_masses(Random& random) {
  Shape shape(random);
  const float temperature = random.of<float>({0.004f, 0.1f, 1.0f});
  const ExactArray<float> potential = random_potential(random, shape.columns);
  ExactArray<float> column_max(shape.columns, random.between(0, 15));
  ExactArray<double> sum(shape.columns, 0);
  std::fill_n(column_max.data(), shape.columns, -std::numeric_limits<float>::infinity());
  std::fill_n(sum.data(), shape.columns, 0.0);
  std::vector<Row> masses(index(shape.columns));
  for (int batch = 0; batch < 2; ++batch) {
    shape.rows = random.of<std::int64_t>({0, 1, 17, 64, 65, 100});
    const ExactArray<float> scores = shape.scores(random, 1.0f);
    for (std::int64_t i = 0; i < shape.rows; ++i) {
      const Row logits = logits_of(shape.row(scores, i), temperature, potential);
      const long double shift = potential.size() ? log_sum_exp(logits) : 0.0L;
      for (std::int64_t j = 0; j < shape.columns; ++j) masses[index(j)].push_back(logits[index(j)] - shift);
    }
    slap_fast::sinkhorn_masses({scores.data(), shape.rows, shape.columns, shape.stride},
                               {temperature, data_or_null(potential)}, column_max.data(), sum.data(), shape.threads);
  }
  for (std::int64_t j = 0; j < shape.columns; ++j) {
    if (masses[index(j)].empty()) {
      require(std::isinf(column_max[j]) && sum[j] == 0.0, "mass without tokens");
      continue;
    }
    const long double mass = static_cast<long double>(column_max[j]) + std::log(static_cast<long double>(sum[j]));
    // The rounding error of a float32 logit grows with 1 / temperature.
    const long double tolerance = 2e-6L + 5e-7L / temperature;
    require(std::fabs(mass - log_sum_exp(masses[index(j)])) <= tolerance, "mass of a prototype");
  }
}

void check_prototype_cross_entropy(Random& random) {
  const Shape shape(random);
  const ExactArray<float> student = shape.scores(random, 1.0f), teacher = shape.scores(random, 1.0f);
  const float student_temperature = random.of<float>({0.05f, 0.1f}), temperature = random.of<float>({0.04f, 1.0f});
  const ExactArray<float> potential = random_potential(random, shape.columns), none(0, 0);
  ExactArray<float> weight(shape.rows, random.between(0, 15));
  long double expected = 0.0L;
  std::vector<Row> gradients;
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    weight[i] = random.uniform(0.0f, 0.05f);
    const Row logits = logits_of(shape.row(student, i), student_temperature, none);
    const Row target = softmax(logits_of(shape.row(teacher, i), temperature, potential));
    const long double lse = log_sum_exp(logits);
    Row gradient = softmax(logits);
    for (std::size_t j = 0; j < gradient.size(); ++j) {
      expected += weight[i] * target[j] * (lse - logits[j]);
      gradient[j] = (gradient[j] - target[j]) * weight[i] / student_temperature;
    }
    gradients.push_back(gradient);
  }
  const GradientReader reader(random, shape, student);
  const double total = slap_fast::prototype_cross_entropy(
      {student.data(), shape.rows, shape.columns, shape.stride}, teacher.data(), student_temperature,
      {temperature, data_or_null(potential)}, weight.data(), reader.dtype, shape.threads);
  require(near(total, expected, 2e-6L), "prototype_cross_entropy");
  for (std::int64_t i = 0; i < shape.rows; ++i) reader.check(i, gradients[index(i)], "gradient of scores");
}

// A single NaN score of any payload makes the loss and the row's gradient NaN.
void check_nan(Random& random, std::uint32_t bits) {
  const Shape shape(random);
  if (shape.rows == 0) return;
  const std::int64_t row = random.between(0, shape.rows - 1), column = random.between(0, shape.columns - 1);
  const auto poison = [&](const ExactArray<float>& scores) {
    std::memcpy(&scores[row * shape.stride + column], &bits, sizeof bits);
  };
  const ExactArray<float> logits = shape.scores(random, 20.0f), teacher = shape.scores(random, 1.0f);
  const ExactArray<std::int64_t> target(shape.rows, 0);
  std::fill_n(target.data(), shape.rows, 0);
  const ExactArray<float> weight(shape.rows, 0);
  std::fill_n(weight.data(), shape.rows, 1.0f);
  const ScoreRows rows{logits.data(), shape.rows, shape.columns, shape.stride};
  poison(logits);
  const GradientReader tokens(random, shape, logits);
  const double total = slap_fast::linear_cross_entropy(rows, target.data(), {0.0, 0.0}, tokens.dtype, shape.threads);
  require(std::isnan(total) && tokens.is_nan(row), "NaN does not propagate to linear_cross_entropy");
  const ExactArray<float> student = shape.scores(random, 1.0f);
  poison(random.once_in(2) ? student : teacher);
  const ScoreRows students{student.data(), shape.rows, shape.columns, shape.stride};
  const GradientReader scores(random, shape, student);
  const double loss = slap_fast::prototype_cross_entropy(students, teacher.data(), 0.1f, {0.1f, nullptr}, weight.data(),
                                                         scores.dtype, shape.threads);
  require(std::isnan(loss) && scores.is_nan(row), "NaN does not propagate to prototype_cross_entropy");
}

void check_malformed() {
  float score = 0.0f;
  const auto rejected = [&](std::int64_t rows, std::int64_t columns, std::int64_t stride, float temperature) {
    const ScoreRows scores{&score, rows, columns, stride};
    require_rejected("malformed scores",
                     [&] { slap_fast::sinkhorn_masses(scores, {temperature, nullptr}, &score, nullptr, 1); });
    require_rejected("malformed scores of a student", [&] {
      slap_fast::prototype_cross_entropy(scores, &score, temperature, {0.1f, nullptr}, nullptr, {}, 1);
    });
    if (temperature <= 0.0f) return;
    require_rejected("malformed logits", [&] { slap_fast::linear_cross_entropy(scores, nullptr, {0.0, 0.0}, {}, 1); });
  };
  rejected(-1, 1, 16, 1.0f);
  rejected(0, 0, 16, 1.0f);
  rejected(0, -5, 16, 1.0f);
  rejected(0, 17, 16, 1.0f);
  rejected(0, 7, 17, 1.0f);
  rejected(0, 16, -16, 1.0f);
  rejected(0, 16, 16, 0.0f);
  rejected(0, 16, 16, -1.0f);
}

}  // namespace

void test_losses() {
  for (slap_fast::Isa isa : isas_of_this_machine()) {
    slap_fast::force_isa(slap_fast::isa_name(isa));
    Random random(13);
    for (int trial = 0; trial < 60; ++trial) {
      check_linear_cross_entropy(random);
      check_sinkhorn_masses(random);
      check_prototype_cross_entropy(random);
      check_nan(random, random.of<std::uint32_t>({0x7fc00000u, 0x7fc00001u, 0x7f800001u, 0xffbfffffu, 0x7fffffffu}));
    }
    check_malformed();
  }
}

}  // namespace testing
