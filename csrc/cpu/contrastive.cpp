#include "contrastive.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "contrastive_positives.h"
#include "contrastive_tiles.h"
#include "matrix_product.h"
#include "parallel.h"

namespace slap_fast {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Statistics of a block of rows for each column of a tile, [columns].
struct ColumnStats {
  explicit ColumnStats(std::int64_t columns)
      : best_positive(columns), best_negative(columns), max(columns), sum(columns) {}
  AlignedArray<float> best_positive, best_negative, max, sum;
};

struct RowTotals {
  explicit RowTotals(std::int64_t rows)
      : sum(static_cast<std::size_t>(rows)),
        positive_similarity(sum.size()),
        best_positive(sum.size(), -kInfinity),
        best_negative(sum.size(), -kInfinity) {}
  std::vector<double> sum, positive_similarity;  // sum of exp(logit - row max), or of sigmoid losses
  std::vector<float> best_positive, best_negative;
};

class Forward {
 public:
  Forward(const ContrastiveInputs& inputs, const ContrastiveSums& sums, int threads)
      : inputs_(inputs),
        sums_(sums),
        kernel_(chosen_contrastive_kernel(inputs.dtype)),
        threads_(useful_threads(inputs, 1.0, threads)),
        positives_(inputs.audio_ids, inputs.rows, inputs.text_ids, inputs.columns, inputs.offset),
        row_totals_(inputs.rows),
        tile_columns_(round_up(std::min(kTileColumns, inputs.columns), 16)),
        panels_(chosen_matrix_product_kernel(inputs.dtype), tile_columns_, inputs.width),
        column_max_(round_up(inputs.columns, 16)),
        column_sum_(round_up(inputs.columns, 16)),
        scratch_(tile_scratch(threads_, tile_columns_, panels_.scratch_bytes())) {
    std::fill_n(column_max_.get(), round_up(inputs.columns, 16), -kInfinity);
    std::fill_n(column_sum_.get(), round_up(inputs.columns, 16), 0.0f);
    std::fill_n(sums.column_best, 2 * inputs.columns, -kInfinity);
    std::fill_n(row_max(), inputs.rows, -kInfinity);
    const std::int64_t blocks = chunk_rows(inputs, threads) / kRowBlock;
    for (std::int64_t block = 0; block < blocks; ++block)
      block_stats_.push_back(std::make_unique<ColumnStats>(tile_columns_));
  }

  void run() {
    const ProductSide text{inputs_.dtype, inputs_.text, inputs_.columns, inputs_.width, inputs_.text_stride, 1};
    const std::int64_t chunk = static_cast<std::int64_t>(block_stats_.size()) * kRowBlock;
    for (std::int64_t column = 0; column < inputs_.columns; column += kTileColumns) {
      const std::int64_t columns = std::min(kTileColumns, inputs_.columns - column);
      panels_.pack(text, column, columns, 0, inputs_.width, threads_);
      for (std::int64_t first = 0; first < inputs_.rows; first += chunk) {
        const std::int64_t rows = std::min(chunk, inputs_.rows - first), blocks = (rows + kRowBlock - 1) / kRowBlock;
        parallel_for(blocks, threads_, [&](std::int64_t block, int thread) {
          const std::int64_t row = first + block * kRowBlock;
          process_tile(row, std::min(kRowBlock, inputs_.rows - row), column, columns,
                       *block_stats_[static_cast<std::size_t>(block)], *scratch_[static_cast<std::size_t>(thread)]);
        });
        for (std::int64_t block = 0; block < blocks; ++block)
          merge_columns(*block_stats_[static_cast<std::size_t>(block)], column, columns);
      }
    }
    finish();
  }

 private:
  float* row_max() const { return sums_.row_stats + 3 * inputs_.rows; }

  void process_tile(std::int64_t first_row, std::int64_t rows, std::int64_t column, std::int64_t columns,
                    ColumnStats& stats, TileScratch& scratch) {
    SimilarityTile tile{scratch.tile.get(), tile_columns_, rows, columns, inputs_.scale, inputs_.bias};
    multiply_tile(inputs_, panels_, first_row, tile, scratch.panels.get());
    std::fill_n(stats.best_positive.get(), tile_columns_, -kInfinity);
    std::fill_n(stats.best_negative.get(), tile_columns_, -kInfinity);
    float* end = mask_positives(tile, first_row, column, stats, scratch);
    if (inputs_.scale == 0.0f) apply_zero_scale(tile, scratch.saved.get(), end);
    float row_values[kRowBlock];
    if (inputs_.sigmoid) {
      float losses[kRowBlock];
      kernel_.sum_pair_losses(tile, row_values, stats.best_negative.get(), losses);
      for (std::int64_t r = 0; r < rows; ++r) row_totals_.sum[static_cast<std::size_t>(first_row + r)] += losses[r];
    } else {
      kernel_.find_max(tile, row_values, stats.best_negative.get());
    }
    double factors[kRowBlock];
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto row = static_cast<std::size_t>(first_row + r);
      row_totals_.best_negative[row] = std::max(row_totals_.best_negative[row], row_values[r]);
      const float old_max = row_max()[row],
                  new_max = std::max({old_max, row_totals_.best_positive[row], row_values[r]});
      factors[r] = std::exp(static_cast<double>(old_max) - static_cast<double>(new_max));
      row_max()[row] = new_max;
    }
    if (inputs_.sigmoid) return;
    restore_positives(tile, first_row, column, scratch);
    for (std::int64_t c = 0; c < tile_columns_; ++c) {
      stats.max.get()[c] = std::max(stats.best_positive.get()[c], stats.best_negative.get()[c]);
      stats.sum.get()[c] = 0.0f;
    }
    kernel_.sum_exponentials(tile, row_max() + first_row, stats.max.get(), row_values, stats.sum.get());
    for (std::int64_t r = 0; r < rows; ++r) {
      double& sum = row_totals_.sum[static_cast<std::size_t>(first_row + r)];
      sum = sum * factors[r] + row_values[r];
    }
  }

  // Processes the positives one by one, saves their similarities and masks them with infinities whose logit is
  // -infinity. Returns the end of the saved similarities.
  float* mask_positives(const SimilarityTile& tile, std::int64_t first_row, std::int64_t first_column,
                        ColumnStats& stats, TileScratch& scratch) {
    const float masked = tile.scale < 0.0f ? kInfinity : -kInfinity;
    float* saved = scratch.saved.get();
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      const auto row = static_cast<std::size_t>(first_row + r);
      positives_.for_each(first_row + r, first_column, first_column + tile.columns, [&](std::int64_t column) {
        const std::int64_t c = column - first_column;
        float& similarity = tile.data[r * tile.stride + c];
        const float logit = kernel_.logit(tile, similarity);
        row_totals_.positive_similarity[row] += similarity;
        row_totals_.best_positive[row] = std::max(row_totals_.best_positive[row], logit);
        stats.best_positive.get()[c] = std::max(stats.best_positive.get()[c], logit);
        if (inputs_.sigmoid)
          row_totals_.sum[row] += std::max(-logit, 0.0f) + std::log1p(std::exp(-std::fabs(static_cast<double>(logit))));
        *saved++ = similarity;
        similarity = masked;
      });
    }
    return saved;
  }

  // 0 * infinity would turn the masked positives into NaN. Multiplies all other similarities by the zero scale here and
  // sets the tile's scale to 1. NaN propagates.
  void apply_zero_scale(SimilarityTile& tile, float* saved, const float* end) const {
    for (float* x = tile.data; x < tile.data + tile.rows * tile.stride; ++x)
      *x = *x == -kInfinity ? *x : *x * 0.0f + 0.0f;
    for (; saved < end; ++saved) *saved = *saved * 0.0f + 0.0f;
    tile.scale = 1.0f;
  }

  void restore_positives(const SimilarityTile& tile, std::int64_t first_row, std::int64_t first_column,
                         TileScratch& scratch) {
    const float* saved = scratch.saved.get();
    for (std::int64_t r = 0; r < tile.rows; ++r)
      positives_.for_each(first_row + r, first_column, first_column + tile.columns,
                          [&](std::int64_t column) { tile.data[r * tile.stride + column - first_column] = *saved++; });
  }

  void merge_columns(const ColumnStats& stats, std::int64_t column, std::int64_t columns) {
    float *positive = sums_.column_best + column, *negative = positive + inputs_.columns;
    for (std::int64_t c = 0; c < columns; ++c) {
      positive[c] = std::max(positive[c], stats.best_positive.get()[c]);
      negative[c] = std::max(negative[c], stats.best_negative.get()[c]);
    }
    if (inputs_.sigmoid) return;
    kernel_.merge_log_sum_exp(columns, column_max_.get() + column, column_sum_.get() + column, stats.max.get(),
                              stats.sum.get());
  }

  void finish() {
    const std::int64_t rows = inputs_.rows, columns = inputs_.columns;
    const std::vector<float> mean =
        mean_row(kernel_, inputs_.dtype, inputs_.text, columns, inputs_.text_stride, inputs_.width);
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto i = static_cast<std::size_t>(row);
      const auto positives = static_cast<double>(positives_.count(row));
      const auto negatives = static_cast<double>(columns) - positives;
      const char* audio =
          static_cast<const char*>(inputs_.audio) + row * row_bytes(inputs_.dtype, inputs_.audio_stride);
      const double total = kernel_.dot(inputs_.dtype, audio, mean.data(), inputs_.width) * static_cast<double>(columns);
      const double positive = row_totals_.positive_similarity[i] / std::max(positives, 1.0);
      sums_.row_stats[row] = static_cast<float>(positive);
      sums_.row_stats[rows + row] =
          negatives > 0.0 ? static_cast<float>((total - row_totals_.positive_similarity[i]) / negatives) : 0.0f;
      sums_.row_stats[2 * rows + row] = row_totals_.best_positive[i] > row_totals_.best_negative[i];
      sums_.row_loss[row] = static_cast<float>(inputs_.sigmoid ? row_totals_.sum[i] : std::log(row_totals_.sum[i]));
      sums_.row_positive[row] = inputs_.sigmoid ? 0.0f : static_cast<float>(positive * inputs_.scale);
    }
    for (std::int64_t column = 0; column < columns; ++column)
      sums_.column_loss[column] = inputs_.sigmoid ? 0.0f : std::log(column_sum_.get()[column]);
  }

  const ContrastiveInputs& inputs_;
  const ContrastiveSums& sums_;
  const ContrastiveKernel& kernel_;
  int threads_;
  Positives positives_;
  RowTotals row_totals_;
  std::int64_t tile_columns_;
  MatrixPanels panels_;
  AlignedArray<float> column_max_, column_sum_;
  std::vector<std::unique_ptr<TileScratch>> scratch_;
  std::vector<std::unique_ptr<ColumnStats>> block_stats_;
};

}  // namespace

void contrastive_sums(const ContrastiveInputs& inputs, const ContrastiveSums& sums, int threads) {
  check(inputs);
  Forward(inputs, sums, threads).run();
}

}  // namespace slap_fast
