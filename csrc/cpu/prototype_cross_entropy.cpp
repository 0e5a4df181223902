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

// Scores that justify one more thread.
constexpr std::int64_t kScoresPerThread = 1 << 15;
// Rows per band, normalized and then summed while in the last-level cache: 8 MiB at 32,768 prototypes.
constexpr std::int64_t kBandRows = 64;
constexpr std::int64_t kColumnsPerTask = 1024;
// Logit of padding columns: its exponential is 0 and, unlike for -infinity, 0 times it is 0.
constexpr float kPaddingLogit = -1e30f;

PrototypeKernels chosen_kernels() { SLAP_FAST_DISPATCH(prototype_kernels()); }

int useful_threads(const ScoreRows& scores, int threads) {
  const std::int64_t useful = scores.rows * scores.columns / kScoresPerThread;
  return static_cast<int>(std::clamp<std::int64_t>(useful, 1, std::max(threads, 1)));
}

void check_temperature(float temperature) {
  if (!(temperature > 0.0f))
    throw std::invalid_argument("the temperature is " + std::to_string(temperature) + "; it must be positive");
}

std::vector<float> padded_potential(const PrototypeLogits& params, const ScoreRows& scores) {
  std::vector<float> potential(static_cast<std::size_t>(scores.padded()));
  if (params.potential != nullptr) std::copy(params.potential, params.potential + scores.columns, potential.begin());
  return potential;
}

}  // namespace

void sinkhorn_masses(const ScoreRows& scores, const PrototypeLogits& params, float* column_max, double* column_sum,
                     int threads) {
  check_scores(scores);
  check_temperature(params.temperature);
  threads = useful_threads(scores, threads);
  const PrototypeKernels kernels = chosen_kernels();
  const std::vector<float> potential = padded_potential(params, scores);
  const RowLogits logits{1.0f / params.temperature, potential.data()};
  const std::int64_t padded = scores.padded();
  std::vector<float> new_max(column_max, column_max + scores.columns), new_sum(static_cast<std::size_t>(padded));
  new_max.resize(static_cast<std::size_t>(padded), kPaddingLogit);
  std::vector<float> row_max(kBandRows), row_log_sum(kBandRows);
  for (std::int64_t band = 0; band < scores.rows; band += kBandRows) {
    const std::int64_t rows = std::min(kBandRows, scores.rows - band);
    parallel_for(rows, threads, [&](std::int64_t i, int) {
      scores.pad(band + i, kPaddingLogit * params.temperature);
      if (params.potential == nullptr) return;
      const RowLogSumExp normalizer = kernels.normalizer(scores.row(band + i), padded, logits);
      row_max[static_cast<std::size_t>(i)] = normalizer.max;
      row_log_sum[static_cast<std::size_t>(i)] = std::log(normalizer.sum);
    });
    parallel_for((padded + kColumnsPerTask - 1) / kColumnsPerTask, threads, [&](std::int64_t task, int) {
      const std::int64_t begin = task * kColumnsPerTask, end = std::min(begin + kColumnsPerTask, padded);
      for (std::int64_t i = 0; i < rows; i += kRowsPerPass)
        kernels.add_columns(scores.row(band + i), scores.stride, std::min(kRowsPerPass, rows - i), begin, end, logits,
                            row_max.data() + i, row_log_sum.data() + i, {new_max.data(), new_sum.data()});
    });
  }
  for (std::int64_t column = 0; column < scores.columns; ++column) {
    const float merged = new_max[static_cast<std::size_t>(column)];
    if (merged != column_max[column])
      column_sum[column] *= std::exp(static_cast<double>(column_max[column]) - static_cast<double>(merged));
    column_sum[column] += static_cast<double>(new_sum[static_cast<std::size_t>(column)]);
    column_max[column] = merged;
  }
}

double prototype_cross_entropy(const ScoreRows& student, float* teacher, float student_temperature,
                               const PrototypeLogits& teacher_params, const float* token_weight, GradDType grad_dtype,
                               int threads) {
  check_scores(student);
  check_temperature(student_temperature);
  check_temperature(teacher_params.temperature);
  const ScoreRows teachers{teacher, student.rows, student.columns, student.stride};
  const PrototypeKernels kernels = chosen_kernels();
  const std::vector<float> potential = padded_potential(teacher_params, teachers);
  const RowLogits logits{1.0f / teacher_params.temperature, potential.data()};
  const float inverse_temperature = 1.0f / student_temperature;
  const bool keep = grad_dtype.has_value();
  std::vector<double> losses(static_cast<std::size_t>(student.rows));
  parallel_for(student.rows, useful_threads(student, threads), [&](std::int64_t i, int) {
    student.pad(i, kPaddingLogit * student_temperature);
    teachers.pad(i, kPaddingLogit * teacher_params.temperature);
    const PairSums sums =
        kernels.pair(student.row(i), teachers.row(i), student.padded(), inverse_temperature, logits, keep);
    const double student_sum = sums.student, teacher_sum = sums.teacher, weight = token_weight[i];
    losses[static_cast<std::size_t>(i)] =
        weight * (std::log(student_sum) - static_cast<double>(sums.product) / teacher_sum);
    if (!keep) return;
    const double scale = weight / static_cast<double>(student_temperature);
    kernels.gradient(student.row(i), teachers.row(i), student.padded(), static_cast<float>(scale / student_sum),
                     static_cast<float>(scale / teacher_sum), *grad_dtype, student.row(i));
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

}  // namespace slap_fast
