// Contrastive sums and gradients against float64 sums over all pairs, on exactly sized arrays.
#include "cpu/contrastive.h"

#include <algorithm>

#include "native_tests.h"
#include "testing.h"

namespace testing {
namespace {

using slap_fast::ContrastiveInputs;
using slap_fast::DType;

struct Call {
  DType dtype;
  std::int64_t rows, columns, width, offset;
  bool sigmoid, by_id;
  double scale, bias;
  std::int64_t audio_stride, text_stride;
  std::vector<double> audio, text;  // [rows, width], [columns, width]
  ExactArray<float> audio_floats, text_floats;
  ExactArray<std::uint16_t> audio_halves, text_halves;
  ExactArray<std::int64_t> audio_ids, text_ids;

  static std::int64_t size(std::int64_t count, std::int64_t stride, std::int64_t width) {
    return count ? (count - 1) * stride + width : 0;
  }

  Call(Random& random, std::int64_t rows, std::int64_t columns)
      : dtype(random.of<DType>({DType::float32, DType::bfloat16, DType::float16})),
        rows(rows),
        columns(columns),
        width(random.of<std::int64_t>({0, 1, 7, 16, 19})),
        offset(random.between(-2, 3)),
        sigmoid(random.once_in(2)),
        by_id(random.once_in(2)),
        scale(random.of<double>({-3.0, 0.0, 2.0, 30.0})),
        bias(random.of<double>({0.0, -4.0})),
        audio_stride(width + random.between(0, 2)),
        text_stride(width + random.between(0, 2)),
        audio_floats(size(rows, audio_stride, width), random.between(0, 15)),
        text_floats(size(columns, text_stride, width), random.between(0, 15)),
        audio_halves(size(rows, audio_stride, width), random.between(0, 31)),
        text_halves(size(columns, text_stride, width), random.between(0, 31)),
        audio_ids(rows, 0),
        text_ids(columns, 0) {
    fill(random, rows, audio_stride, audio, audio_floats, audio_halves);
    fill(random, columns, text_stride, text, text_floats, text_halves);
    for (std::int64_t i = 0; i < rows; ++i) audio_ids[i] = random.between(-2, 2);
    for (std::int64_t i = 0; i < columns; ++i) text_ids[i] = random.between(-2, 2);
  }

  // Powers of two, exact in every dtype.
  void fill(Random& random, std::int64_t count, std::int64_t stride, std::vector<double>& exact,
            ExactArray<float>& floats, ExactArray<std::uint16_t>& halves) const {
    for (std::int64_t i = 0; i < floats.size(); ++i) floats[i] = NAN, halves[i] = 0x7fffu;
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t k = 0; k < width; ++k) {
        const int exponent = static_cast<int>(random.between(-4, -2));
        const bool negative = random.once_in(2);
        const float x = std::ldexp(negative ? -1.0f : 1.0f, exponent);
        exact.push_back(x);
        floats[i * stride + k] = x;
        const int biased = dtype == DType::bfloat16 ? (exponent + 127) << 7 : (exponent + 15) << 10;
        halves[i * stride + k] = static_cast<std::uint16_t>(biased | (negative ? 0x8000 : 0));
      }
  }

  ContrastiveInputs inputs(std::int64_t chunk_size) const {
    const bool wide = dtype == DType::float32;
    return {dtype,
            wide ? static_cast<const void*>(audio_floats.data()) : audio_halves.data(),
            wide ? static_cast<const void*>(text_floats.data()) : text_halves.data(),
            rows,
            columns,
            width,
            audio_stride,
            text_stride,
            static_cast<float>(scale),
            static_cast<float>(bias),
            sigmoid,
            offset,
            by_id ? audio_ids.data() : nullptr,
            by_id ? text_ids.data() : nullptr,
            chunk_size};
  }

  double similarity(std::int64_t row, std::int64_t column) const {
    double sum = 0.0;
    for (std::int64_t k = 0; k < width; ++k)
      sum += audio[static_cast<std::size_t>(row * width + k)] * text[static_cast<std::size_t>(column * width + k)];
    return sum;
  }
  bool positive(std::int64_t row, std::int64_t column) const {
    return by_id ? audio_ids[row] == text_ids[column] : column == offset + row;
  }
};

void require_near(double actual, double expected, double scale, const char* what) {
  require(actual == expected || std::fabs(actual - expected) <= 1e-5 * (scale + std::fabs(expected)), what);
}

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

void check_call(Random& random, const Call& call) {
  const std::int64_t rows = call.rows, columns = call.columns;
  const auto vector = [&](std::int64_t size) { return poisoned(size, random.between(0, 15)); };
  const ExactArray<float> row_loss = vector(rows), column_loss = vector(columns), row_positive = vector(rows);
  const ExactArray<float> stats = vector(4 * rows), best = vector(2 * columns);
  const ContrastiveInputs inputs = call.inputs(random.of<std::int64_t>({0, 1, 96, 200}));
  const int threads = random.of<int>({-1, 1, 3});
  slap_fast::contrastive_sums(
      inputs, {row_loss.data(), column_loss.data(), row_positive.data(), stats.data(), best.data()}, threads);

  const auto count = static_cast<std::size_t>(rows * columns);
  std::vector<double> similarities(count), grads(count), row_exact(static_cast<std::size_t>(rows)),
      column_exact(static_cast<std::size_t>(columns));
  const auto at = [&](std::int64_t row, std::int64_t column) {
    return static_cast<std::size_t>(row * columns + column);
  };
  const auto logit = [&](std::int64_t row, std::int64_t column) {
    return call.scale * similarities[at(row, column)] + call.bias;
  };
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t column = 0; column < columns; ++column)
      similarities[at(row, column)] = call.similarity(row, column);
  for (std::int64_t row = 0; row < rows; ++row) {
    double largest = -INFINITY, sum = 0.0, positive = 0.0, positives = 0.0, highest[2] = {-INFINITY, -INFINITY};
    for (std::int64_t column = 0; column < columns; ++column) {
      const bool is_positive = call.positive(row, column);
      largest = std::max(largest, logit(row, column));
      highest[is_positive] = std::max(highest[is_positive], logit(row, column));
      if (is_positive) positive += similarities[at(row, column)], ++positives;
    }
    for (std::int64_t column = 0; column < columns; ++column)
      sum += call.sigmoid ? softplus(call.positive(row, column) ? -logit(row, column) : logit(row, column))
                          : std::exp(logit(row, column) - largest);
    row_exact[static_cast<std::size_t>(row)] = largest + std::log(sum);
    const double mean = positive / std::max(positives, 1.0);
    require_near(row_loss[row], call.sigmoid ? sum : std::log(sum), 1.0, "row_loss");
    require_near(row_positive[row], call.sigmoid ? 0.0 : mean * call.scale, 1.0, "row_positive");
    require_near(stats[row], mean, 1.0, "similarity of positives");
    require_near(stats[2 * rows + row], highest[1] > highest[0], 0.0, "best logit is positive");
    require_near(stats[3 * rows + row], largest, 1.0, "largest logit");
  }
  ExactArray<float> column_max(columns, 0);
  for (std::int64_t column = 0; column < columns; ++column) {
    double sum = 0.0, highest[2] = {-INFINITY, -INFINITY};
    for (std::int64_t row = 0; row < rows; ++row) {
      double& top = highest[call.positive(row, column)];
      top = std::max(top, logit(row, column));
    }
    const double largest = std::max(highest[0], highest[1]);
    for (std::int64_t row = 0; row < rows; ++row) sum += std::exp(logit(row, column) - largest);
    column_exact[static_cast<std::size_t>(column)] = largest + std::log(sum);
    require_near(column_loss[column], call.sigmoid ? 0.0 : std::log(sum), 1.0, "column_loss");
    require_near(best[column], highest[1], 1.0, "column's best positive");
    require_near(best[columns + column], highest[0], 1.0, "column's best negative");
    column_max[column] = static_cast<float>(largest);
  }

  ExactArray<float> grad_row = vector(rows), grad_column = vector(columns), grad_positive = vector(rows);
  for (std::int64_t row = 0; row < rows; ++row) {
    grad_row[row] = random.uniform(0.5f, 1.0f);
    grad_positive[row] = random.uniform(-1.0f, -0.5f);
  }
  for (std::int64_t column = 0; column < columns; ++column) grad_column[column] = random.uniform(0.5f, 1.0f);
  const bool wide = call.dtype == DType::float32;
  const ExactArray<float> audio_floats = vector(wide ? rows * call.width : 0);
  const ExactArray<float> text_floats = vector(wide ? columns * call.width : 0);
  const ExactArray<std::uint16_t> audio_halves(wide ? 0 : rows * call.width, random.between(0, 31));
  const ExactArray<std::uint16_t> text_halves(wide ? 0 : columns * call.width, random.between(0, 31));
  double grad_scale = NAN, grad_bias = NAN, scale_exact = 0.0, bias_exact = 0.0, size = 0.0;
  void* grad_audio = wide ? static_cast<void*>(audio_floats.data()) : audio_halves.data();
  void* grad_text = wide ? static_cast<void*>(text_floats.data()) : text_halves.data();
  slap_fast::contrastive_sums_backward(
      inputs,
      {grad_row.data(), grad_column.data(), grad_positive.data(), row_loss.data(), column_loss.data(),
       stats.data() + 3 * rows, column_max.data(), grad_audio, grad_text, &grad_scale, &grad_bias},
      threads);
  for (std::int64_t row = 0; row < rows; ++row) {
    double positives = 0.0;
    for (std::int64_t column = 0; column < columns; ++column) positives += call.positive(row, column);
    for (std::int64_t column = 0; column < columns; ++column) {
      const double sign = call.positive(row, column) ? -1.0 : 1.0, x = logit(row, column);
      double& grad = grads[at(row, column)];
      if (call.sigmoid)
        grad = grad_row[row] * sign / (1.0 + std::exp(-sign * x));
      else
        grad = grad_row[row] * std::exp(x - row_exact[static_cast<std::size_t>(row)]) +
               grad_column[column] * std::exp(x - column_exact[static_cast<std::size_t>(column)]) +
               (sign < 0.0 ? grad_positive[row] / positives : 0.0);
      scale_exact += grad * similarities[at(row, column)];
      bias_exact += grad;
      size += std::fabs(grad);
    }
  }
  require_near(grad_scale, scale_exact, size, "gradient of the scale");
  require_near(grad_bias, bias_exact, size, "gradient of the bias");
  for (std::int64_t row = 0; wide && row < rows; ++row)
    for (std::int64_t k = 0; k < call.width; ++k) {
      double sum = 0.0;
      for (std::int64_t column = 0; column < columns; ++column)
        sum += grads[at(row, column)] * call.text[static_cast<std::size_t>(column * call.width + k)];
      require_near(audio_floats[row * call.width + k], call.scale * sum, 30.0, "gradient of audio");
    }
  for (std::int64_t column = 0; wide && column < columns; ++column)
    for (std::int64_t k = 0; k < call.width; ++k) {
      double sum = 0.0;
      for (std::int64_t row = 0; row < rows; ++row)
        sum += grads[at(row, column)] * call.audio[static_cast<std::size_t>(row * call.width + k)];
      require_near(text_floats[column * call.width + k], call.scale * sum, 30.0, "gradient of text");
    }
}

void check_malformed() {
  const auto rejected = [](const std::string& what, ContrastiveInputs inputs) {
    require_rejected(what, [&] { slap_fast::contrastive_sums(inputs, {}, 1); });
    require_rejected(what, [&] { slap_fast::contrastive_sums_backward(inputs, {}, 1); });
  };
  ContrastiveInputs inputs{};
  inputs.rows = -1;
  rejected("negative rows", inputs);
  inputs = {};
  inputs.columns = -1;
  rejected("negative columns", inputs);
  inputs = {};
  inputs.width = -1;
  rejected("negative width", inputs);
  inputs = {};
  inputs.offset = INT64_MIN;
  rejected("offset", inputs);
}

}  // namespace

void test_contrastive() {
  for (slap_fast::Isa isa : isas_of_this_machine()) {
    slap_fast::force_isa(slap_fast::isa_name(isa));
    Random random(17);
    for (int trial = 0; trial < 40; ++trial) {
      const std::int64_t rows = random.of<std::int64_t>({0, 1, 3, 17, 97});
      const std::int64_t columns = random.of<std::int64_t>({0, 1, 15, 50});
      check_call(random, Call(random, rows, columns));
    }
    check_call(random, Call(random, 7, 1537));
    check_call(random, Call(random, 1537, 5));
    check_malformed();
  }
}

}  // namespace testing
