#include "linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "isa.h"
#include "linear_cross_entropy_kernel.h"
#include "parallel.h"

namespace slap_fast {
namespace {

// Logits that justify one more thread.
constexpr std::int64_t kLogitsPerThread = 1 << 15;

CrossEntropyKernels chosen_kernels() { SLAP_FAST_DISPATCH(cross_entropy_kernels()); }

double row_loss(const CrossEntropyKernels& kernels, const ScoreRows& logits, std::int64_t i, std::int64_t target,
                const TokenLoss& loss, GradDType grad_dtype) {
  float* row = logits.row(i);
  if (target < 0 || target >= logits.columns) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    if (grad_dtype) kernels.gradient(row, logits.padded(), nan, nan, -1, nan, *grad_dtype, row);
    return nan;
  }
  const double expected = row[target], smoothing = loss.label_smoothing;
  const double columns = static_cast<double>(logits.columns);
  const double mean = smoothing == 0.0 ? 0.0 : static_cast<double>(kernels.sum(row, logits.columns)) / columns;
  logits.pad(i, -std::numeric_limits<float>::infinity());
  const RowExponentials exponentials = kernels.exponentials(row, logits.padded(), grad_dtype.has_value());
  const double row_max = exponentials.max, log_sum = std::log(static_cast<double>(exponentials.sum));
  const double lse = row_max + log_sum;
  if (grad_dtype) {
    // Scales exp(x - max) instead of computing exp(x - lse): at large logits the rounded lse is too coarse.
    const double scale = (1.0 + 2.0 * loss.z_loss * lse) / static_cast<double>(exponentials.sum);
    const double shift = smoothing / columns;
    const double at_target = static_cast<double>(row[target]) * scale - shift - (1.0 - smoothing);
    kernels.gradient(row, logits.padded(), static_cast<float>(scale), static_cast<float>(shift), target,
                     static_cast<float>(at_target), *grad_dtype, row);
  }
  return log_sum + (1.0 - smoothing) * (row_max - expected) + smoothing * (row_max - mean) + loss.z_loss * lse * lse;
}

}  // namespace

double linear_cross_entropy(const ScoreRows& logits, const std::int64_t* target, const TokenLoss& loss,
                            GradDType grad_dtype, int threads) {
  check_scores(logits);
  const CrossEntropyKernels kernels = chosen_kernels();
  std::vector<double> losses(static_cast<std::size_t>(logits.rows));
  const std::int64_t useful = logits.rows * logits.columns / kLogitsPerThread;
  threads = static_cast<int>(std::clamp<std::int64_t>(useful, 1, std::max(threads, 1)));
  parallel_for(logits.rows, threads, [&](std::int64_t i, int) {
    losses[static_cast<std::size_t>(i)] = row_loss(kernels, logits, i, target[i], loss, grad_dtype);
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

}  // namespace slap_fast
