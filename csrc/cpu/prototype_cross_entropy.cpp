#include "prototype_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "prototype_cross_entropy_kernel.h"

namespace slap_fast {
namespace {

// Below this many scores a thread costs more than it saves.
constexpr std::int64_t kScoresPerThread = 1 << 15;
// Rows are normalised, then summed over, while they are in the last cache: 8 MiB of 32,768 prototypes.
constexpr std::int64_t kBandRows = 64;
constexpr std::int64_t kColumnsPerTask = 1024;
// The logits of the scratch beside a row. Its exponential is 0, and 0 times it is 0, unlike that of an infinity.
constexpr float kNone = -1e30f;

PrototypeKernels chosen_kernels() { SLAP_FAST_RETURN_SERVING(prototype_kernels()); }

int useful_threads(const ScoreRows& scores, int threads) {
  const std::int64_t useful = scores.rows * scores.columns / kScoresPerThread;
  return static_cast<int>(std::clamp<std::int64_t>(useful, 1, std::max(threads, 1)));
}

void check_temperature(float temperature) {
  if (!(temperature > 0.0f))
    throw std::invalid_argument("the temperature is " + std::to_string(temperature) + "; it must be positive");
}

std::vector<float> padded_potential(const PrototypeLogits& how, const ScoreRows& scores) {
  std::vector<float> potential(static_cast<std::size_t>(scores.padded()));
  if (how.potential != nullptr) std::copy(how.potential, how.potential + scores.columns, potential.begin());
  return potential;
}

}  // namespace

void sinkhorn_masses(const ScoreRows& scores, const PrototypeLogits& how, float* largest, double* sum, int threads) {
  check_scores(scores);
  check_temperature(how.temperature);
  threads = useful_threads(scores, threads);
  const PrototypeKernels kernels = chosen_kernels();
  const std::vector<float> potential = padded_potential(how, scores);
  const RowLogits logits{1.0f / how.temperature, potential.data()};
  const std::int64_t padded = scores.padded();
  std::vector<float> largest_now(largest, largest + scores.columns), sum_now(static_cast<std::size_t>(padded));
  largest_now.resize(static_cast<std::size_t>(padded), kNone);
  std::vector<float> row_largest(kBandRows), row_log_sum(kBandRows);
  for (std::int64_t band = 0; band < scores.rows; band += kBandRows) {
    const std::int64_t rows = std::min(kBandRows, scores.rows - band);
    parallel_for(rows, threads, [&](std::int64_t i, int) {
      scores.pad(band + i, kNone * how.temperature);
      if (how.potential == nullptr) return;
      const RowLogSumExp normalizer = kernels.normalizer(scores.row(band + i), padded, logits);
      row_largest[static_cast<std::size_t>(i)] = normalizer.largest;
      row_log_sum[static_cast<std::size_t>(i)] = std::log(normalizer.sum);
    });
    parallel_for((padded + kColumnsPerTask - 1) / kColumnsPerTask, threads, [&](std::int64_t task, int) {
      const std::int64_t begin = task * kColumnsPerTask, end = std::min(begin + kColumnsPerTask, padded);
      for (std::int64_t i = 0; i < rows; i += kTogether)
        kernels.add_columns(scores.row(band + i), scores.stride, std::min(kTogether, rows - i), begin, end, logits,
                            row_largest.data() + i, row_log_sum.data() + i, {largest_now.data(), sum_now.data()});
    });
  }
  for (std::int64_t column = 0; column < scores.columns; ++column) {
    const float now = largest_now[static_cast<std::size_t>(column)];
    if (now != largest[column])
      sum[column] *= std::exp(static_cast<double>(largest[column]) - static_cast<double>(now));
    sum[column] += static_cast<double>(sum_now[static_cast<std::size_t>(column)]);
    largest[column] = now;
  }
}

double prototype_cross_entropy(const ScoreRows& student, float* teacher, float student_temperature,
                               const PrototypeLogits& teacher_how, const float* token_weight, Gradients gradients,
                               int threads) {
  check_scores(student);
  check_temperature(student_temperature);
  check_temperature(teacher_how.temperature);
  const ScoreRows teachers{teacher, student.rows, student.columns, student.stride};
  const PrototypeKernels kernels = chosen_kernels();
  const std::vector<float> potential = padded_potential(teacher_how, teachers);
  const RowLogits logits{1.0f / teacher_how.temperature, potential.data()};
  const float inverse_temperature = 1.0f / student_temperature;
  const bool keep = gradients.has_value();
  std::vector<double> losses(static_cast<std::size_t>(student.rows));
  parallel_for(student.rows, useful_threads(student, threads), [&](std::int64_t i, int) {
    student.pad(i, kNone * student_temperature);
    teachers.pad(i, kNone * teacher_how.temperature);
    const PairSums sums =
        kernels.pair(student.row(i), teachers.row(i), student.padded(), inverse_temperature, logits, keep);
    const double student_sum = sums.student, teacher_sum = sums.teacher, weight = token_weight[i];
    losses[static_cast<std::size_t>(i)] =
        weight * (std::log(student_sum) - static_cast<double>(sums.product) / teacher_sum);
    if (!keep) return;
    const double scale = weight / static_cast<double>(student_temperature);
    kernels.gradient(student.row(i), teachers.row(i), student.padded(), static_cast<float>(scale / student_sum),
                     static_cast<float>(scale / teacher_sum), *gradients, student.row(i));
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

}  // namespace slap_fast
