#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "contrastive.h"
#include "contrastive_positives.h"
#include "contrastive_tiles.h"
#include "matrix_product.h"
#include "parallel.h"

namespace slap_fast {
namespace {

// Keeps the logit gradients of a chunk of rows and a tile of columns for both products, d_audio and d_text.
//
// With bfloat16 products they are rounded to bfloat16. The rounding error of each row and column is compensated along
// the mean embedding, and that of a row's first positive, often its largest gradient, along that positive: embeddings
// share a large common component, and the gradient is a small difference of large sums along it.
class Backward {
 public:
  Backward(const ContrastiveInputs& inputs, const ContrastiveGradients& gradients, int threads)
      : inputs_(inputs),
        gradients_(gradients),
        kernel_(chosen_contrastive_kernel(inputs.dtype)),
        product_kernel_(chosen_matrix_product_kernel(inputs.dtype)),
        bfloat16_grads_(product_kernel_.value_bytes == 2),
        threads_(useful_threads(inputs, 3.0, threads)),
        positives_(inputs.audio_ids, inputs.rows, inputs.text_ids, inputs.columns, inputs.offset),
        chunk_rows_(chunk_rows(inputs, threads)),
        stride_(round_up(std::min(kTileColumns, inputs.columns), 16)),
        text_(product_kernel_, stride_, inputs.width),
        text_channels_(product_kernel_, inputs.width, stride_),
        audio_channels_(product_kernel_, inputs.width, chunk_rows_),
        logit_grads_(chunk_rows_ * stride_ * product_kernel_.value_bytes),
        audio_sums_(chunk_rows_ * inputs.width),
        text_sums_(inputs.dtype == DType::float32 ? 0 : inputs.columns * inputs.width),
        column_max_(stride_),
        column_loss_(stride_),
        column_grad_(stride_),
        block_residuals_(bfloat16_grads_ ? chunk_rows_ / kRowBlock * stride_ : 0),
        column_residuals_(bfloat16_grads_ ? static_cast<std::size_t>(inputs.columns) : 0),
        scratch_(tile_scratch(
            threads_, stride_,
            std::max({text_.scratch_bytes(), text_channels_.scratch_bytes(), audio_channels_.scratch_bytes()}))) {
    row_grad_.assign(gradients.grad_row, gradients.grad_row + inputs.rows);
    positive_grad_.assign(gradients.grad_positive, gradients.grad_positive + inputs.rows);
    if (!bfloat16_grads_) return;
    // Scale by the first row's gradient, usually that of all rows: saturated pairs then have the exact gradient 1.
    if (inputs.rows > 0 && std::isnormal(1.0f / row_grad_[0])) grad_unit_ = row_grad_[0];
    for (float& grad : row_grad_) grad /= grad_unit_;
    for (float& grad : positive_grad_) grad /= grad_unit_;
    text_mean_ = mean_row(kernel_, inputs.dtype, inputs.text, inputs.columns, inputs.text_stride, inputs.width);
    audio_mean_ = mean_row(kernel_, inputs.dtype, inputs.audio, inputs.rows, inputs.audio_stride, inputs.width);
  }

  void run() {
    const ProductSide text{inputs_.dtype, inputs_.text, inputs_.columns, inputs_.width, inputs_.text_stride, 1};
    for (std::int64_t row = 0; row < inputs_.rows; row += chunk_rows_) {
      const std::int64_t rows = std::min(chunk_rows_, inputs_.rows - row);
      audio_channels_.pack(channels(inputs_.audio, inputs_.rows, inputs_.audio_stride), 0, inputs_.width, row, rows,
                           threads_);
      weighted_.assign(static_cast<std::size_t>(rows), 0.0);
      totals_.assign(static_cast<std::size_t>(rows), 0.0);
      row_residuals_.assign(static_cast<std::size_t>(rows), 0.0f);
      positive_residuals_.assign(static_cast<std::size_t>(rows), 0.0f);
      for (std::int64_t column = 0; column < inputs_.columns; column += kTileColumns) {
        const std::int64_t columns = std::min(kTileColumns, inputs_.columns - column);
        text_.pack(text, column, columns, 0, inputs_.width, threads_);
        text_channels_.pack(channels(inputs_.text, inputs_.columns, inputs_.text_stride), 0, inputs_.width, column,
                            columns, threads_);
        std::copy_n(gradients_.column_max + column, columns, column_max_.get());
        std::copy_n(gradients_.column_loss + column, columns, column_loss_.get());
        for (std::int64_t c = 0; c < columns; ++c)
          column_grad_.get()[c] = gradients_.grad_column[column + c] / grad_unit_;
        process_rows(row, rows, column, columns);
        process_columns(row, rows, column, columns);
      }
      finish_rows(row, rows);
    }
    finish_columns();
    *gradients_.grad_scale = grad_scale_ * grad_unit_;
    *gradients_.grad_bias = grad_bias_ * grad_unit_;
  }

 private:
  // Operand of a product that sums over rows: lanes are channels.
  ProductSide channels(const void* data, std::int64_t rows, std::int64_t stride) const {
    return {inputs_.dtype, data, inputs_.width, rows, 1, stride};
  }

  // The logit gradients as the left operand, with rows or columns as lanes.
  ProductSide logit_grads(std::int64_t lanes, std::int64_t depth, bool by_rows) const {
    return {bfloat16_grads_ ? DType::bfloat16 : DType::float32,
            logit_grads_.get(),
            lanes,
            depth,
            by_rows ? stride_ : 1,
            by_rows ? 1 : stride_};
  }

  float* text_sums() const {
    return inputs_.dtype == DType::float32 ? static_cast<float*>(gradients_.grad_text) : text_sums_.get();
  }

  void process_rows(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
    const ProductSide left = logit_grads(rows, columns, true);
    const std::int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
    parallel_for(blocks, threads_, [&](std::int64_t block, int thread) {
      TileScratch& scratch = *scratch_[static_cast<std::size_t>(thread)];
      const std::int64_t row_offset = block * kRowBlock, count = std::min(kRowBlock, rows - row_offset);
      float* data =
          bfloat16_grads_ ? scratch.tile.get() : reinterpret_cast<float*>(logit_grads_.get()) + row_offset * stride_;
      const SimilarityTile tile{data, stride_, count, columns, inputs_.scale, inputs_.bias};
      multiply_tile(inputs_, text_, row + row_offset, tile, scratch.panels.get());
      compute_logit_gradients(tile, row, row_offset, column, scratch);
      if (bfloat16_grads_) {
        float* residuals = block_residuals_.get() + block * stride_;
        std::fill_n(residuals, stride_, 0.0f);
        auto* out = reinterpret_cast<std::uint16_t*>(logit_grads_.get()) + row_offset * stride_;
        kernel_.round_to_bfloat16(tile, out, stride_, row_residuals_.data() + row_offset, residuals);
        extract_positive_residuals(tile, out, row, row_offset, column, residuals);
      }
      text_channels_.multiply(left, row_offset, count, 0, 0, inputs_.width,
                              audio_sums_.get() + row_offset * inputs_.width, inputs_.width, column > 0,
                              scratch.panels.get());
    });
    for (std::int64_t block = 0; bfloat16_grads_ && block < blocks; ++block)
      for (std::int64_t c = 0; c < columns; ++c)
        column_residuals_[static_cast<std::size_t>(column + c)] += block_residuals_.get()[block * stride_ + c];
  }

  void extract_positive_residuals(const SimilarityTile& tile, const std::uint16_t* rounded, std::int64_t row,
                                  std::int64_t row_offset, std::int64_t first_column, float* column_residuals) {
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      const std::int64_t c = positives_.first(row + row_offset + r) - first_column, at = r * tile.stride + c;
      if (c < 0 || c >= tile.columns) continue;
      const std::uint32_t bits = static_cast<std::uint32_t>(rounded[at]) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      const float residual = tile.data[at] - value;
      positive_residuals_[static_cast<std::size_t>(row_offset + r)] = residual;
      row_residuals_[static_cast<std::size_t>(row_offset + r)] -= residual;
      column_residuals[c] -= residual;
    }
  }

  // Replaces similarities by gradients of logits. `row` is the first row of the chunk, `row_offset` that of the tile in
  // it.
  void compute_logit_gradients(const SimilarityTile& tile, std::int64_t row, std::int64_t row_offset,
                               std::int64_t first_column, TileScratch& scratch) {
    const std::int64_t first_row = row + row_offset, last_column = first_column + tile.columns;
    float* saved = scratch.saved.get();
    for (std::int64_t r = 0; r < tile.rows; ++r)
      positives_.for_each(first_row + r, first_column, last_column,
                          [&](std::int64_t column) { *saved++ = tile.data[r * tile.stride + column - first_column]; });
    float weighted[kRowBlock], totals[kRowBlock];
    const float* row_grad = row_grad_.data() + first_row;
    if (inputs_.sigmoid)
      kernel_.sigmoid_gradients(tile, row_grad, weighted, totals);
    else
      kernel_.softmax_gradients(tile, {gradients_.row_max + first_row, gradients_.row_loss + first_row, row_grad},
                                {column_max_.get(), column_loss_.get(), column_grad_.get()}, weighted, totals);
    saved = scratch.saved.get();
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      double& total = totals_[static_cast<std::size_t>(row_offset + r)];
      double& weighted_total = weighted_[static_cast<std::size_t>(row_offset + r)];
      total += totals[r];
      weighted_total += weighted[r];
      const float positive_grad = positive_grad_[static_cast<std::size_t>(first_row + r)] /
                                  static_cast<float>(std::max<std::int64_t>(positives_.count(first_row + r), 1));
      positives_.for_each(first_row + r, first_column, last_column, [&](std::int64_t column) {
        float& grad = tile.data[r * tile.stride + column - first_column];
        const float similarity = *saved++;
        const double before = grad;
        if (inputs_.sigmoid)
          grad = -row_grad[r] * sigmoid(-kernel_.logit(tile, similarity));
        else
          grad += positive_grad;
        total += grad - before;
        weighted_total += (grad - before) * similarity;
      });
    }
  }

  static float sigmoid(float x) {
    const float decay = std::exp(-std::fabs(x));
    return (x < 0.0f ? decay : 1.0f) / (1.0f + decay);
  }

  void process_columns(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
    const ProductSide left = logit_grads(columns, rows, false);
    parallel_for((columns + kRowBlock - 1) / kRowBlock, threads_, [&](std::int64_t block, int thread) {
      const std::int64_t first = block * kRowBlock, count = std::min(kRowBlock, columns - first);
      audio_channels_.multiply(left, first, count, 0, 0, inputs_.width, text_sums() + (column + first) * inputs_.width,
                               inputs_.width, row > 0, scratch_[static_cast<std::size_t>(thread)]->panels.get());
    });
  }

  void finish_rows(std::int64_t row, std::int64_t rows) {
    if (inputs_.columns == 0) std::fill_n(audio_sums_.get(), rows * inputs_.width, 0.0f);
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto i = static_cast<std::size_t>(r);
      grad_scale_ += weighted_[i];
      grad_bias_ += totals_[i];
      float* sum = audio_sums_.get() + r * inputs_.width;
      if (bfloat16_grads_) {
        add_scaled(text_mean_, row_residuals_[i], sum);
        if (const std::int64_t column = positives_.first(row + r); column >= 0) {
          add_row(inputs_.text, column * inputs_.text_stride, positive_residuals_[i], sum);
          add_row(inputs_.audio, (row + r) * inputs_.audio_stride, positive_residuals_[i],
                  text_sums() + column * inputs_.width);
        }
      }
      write(sum, gradients_.grad_audio, row + r);
    }
  }

  void finish_columns() {
    if (inputs_.rows == 0) std::fill_n(text_sums(), inputs_.columns * inputs_.width, 0.0f);
    for (std::int64_t column = 0; column < inputs_.columns; ++column) {
      float* sum = text_sums() + column * inputs_.width;
      if (bfloat16_grads_) add_scaled(audio_mean_, column_residuals_[static_cast<std::size_t>(column)], sum);
      write(sum, gradients_.grad_text, column);
    }
  }

  void add_row(const void* data, std::int64_t offset, float factor, float* sum) const {
    kernel_.add_row(inputs_.dtype, static_cast<const char*>(data) + row_bytes(inputs_.dtype, offset), inputs_.width,
                    factor, sum);
  }

  static void add_scaled(const std::vector<float>& mean, float factor, float* sum) {
    for (std::size_t i = 0; i < mean.size(); ++i) sum[i] += factor * mean[i];
  }

  void write(const float* sum, void* out, std::int64_t row) const {
    kernel_.write_row(inputs_.dtype, sum, inputs_.width, inputs_.scale * grad_unit_,
                      static_cast<char*>(out) + row * row_bytes(inputs_.dtype, inputs_.width));
  }

  const ContrastiveInputs& inputs_;
  const ContrastiveGradients& gradients_;
  const ContrastiveKernel& kernel_;
  const MatrixProductKernel& product_kernel_;
  bool bfloat16_grads_;
  int threads_;
  Positives positives_;
  std::int64_t chunk_rows_, stride_;
  MatrixPanels text_, text_channels_, audio_channels_;
  AlignedArray<std::byte> logit_grads_;                         // [chunk_rows_, stride_]
  AlignedArray<float> audio_sums_, text_sums_;                  // [chunk_rows_, width], [columns, width]
  AlignedArray<float> column_max_, column_loss_, column_grad_;  // [tile columns]
  AlignedArray<float> block_residuals_;                         // [row blocks of a chunk, stride_]
  std::vector<float> row_grad_, positive_grad_;                 // divided by grad_unit_
  float grad_unit_ = 1.0f;
  std::vector<float> column_residuals_, row_residuals_, positive_residuals_, text_mean_, audio_mean_;
  std::vector<double> weighted_, totals_;  // [rows of a chunk]: sums of gradient * similarity and of gradients
  double grad_scale_ = 0.0, grad_bias_ = 0.0;
  std::vector<std::unique_ptr<TileScratch>> scratch_;
};

}  // namespace

void contrastive_sums_backward(const ContrastiveInputs& inputs, const ContrastiveGradients& gradients, int threads) {
  check(inputs);
  Backward(inputs, gradients, threads).run();
}

}  // namespace slap_fast
