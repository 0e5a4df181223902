#include <algorithm>
#include <cmath>
#include <vector>

#include "contrastive.h"
#include "contrastive_positives.h"
#include "contrastive_tiles.h"
#include "matrix_product.h"
#include "parallel.h"

namespace slap_fast {
namespace {

// Gradients of the logits of some rows and a tile's columns are kept until columns are done with them. Where products
// are of bfloat16 so are they, and what their rounding takes from a row or a column as a whole is put back along its
// first positive, or where it has none here, along the mean: embeddings have much in common, and without it the small
// difference of large sums would be lost.
class Backward {
 public:
  Backward(const ContrastiveInputs& inputs, const ContrastiveGradients& gradients, int threads)
      : inputs_(inputs),
        gradients_(gradients),
        kernel_(chosen_contrastive_kernel(inputs.element)),
        products_(chosen_matrix_product_kernel(inputs.element)),
        narrow_(products_.value_bytes == 2),
        threads_(useful_threads(inputs, 3.0, threads)),
        positives_(inputs.audio_ids, inputs.rows, inputs.text_ids, inputs.columns, inputs.offset),
        group_(rows_at_once(inputs, threads)),
        stride_(round_up(std::min(kTileColumns, inputs.columns), 16)),
        text_(products_, stride_, inputs.width),
        text_channels_(products_, inputs.width, stride_),
        audio_channels_(products_, inputs.width, group_),
        logit_grads_(group_ * stride_ * products_.value_bytes),
        audio_sums_(group_ * inputs.width),
        text_sums_(inputs.element == Storage::float32 ? 0 : inputs.columns * inputs.width),
        column_largest_(stride_),
        column_loss_(stride_),
        column_grad_(stride_),
        block_rests_(narrow_ ? group_ / kRowBlock * stride_ : 0),
        column_rests_(narrow_ ? static_cast<std::size_t>(inputs.columns) : 0),
        scratch_(tile_scratch(threads_, stride_,
                              std::max({text_.scratch_bytes(), text_channels_.scratch_bytes(),
                                        audio_channels_.scratch_bytes()}))) {
    if (!narrow_) return;
    text_mean_ = mean_row(kernel_, inputs.element, inputs.text, inputs.columns, inputs.text_stride, inputs.width);
    audio_mean_ = mean_row(kernel_, inputs.element, inputs.audio, inputs.rows, inputs.audio_stride, inputs.width);
  }

  void run() {
    const ProductSide text{inputs_.element, inputs_.text, inputs_.columns, inputs_.width, inputs_.text_stride, 1};
    for (std::int64_t row = 0; row < inputs_.rows; row += group_) {
      const std::int64_t rows = std::min(group_, inputs_.rows - row);
      audio_channels_.pack(channels(inputs_.audio, inputs_.rows, inputs_.audio_stride), 0, inputs_.width, row, rows,
                           threads_);
      weighted_.assign(static_cast<std::size_t>(rows), 0.0);
      totals_.assign(static_cast<std::size_t>(rows), 0.0);
      row_rests_.assign(static_cast<std::size_t>(rows), 0.0f);
      for (std::int64_t column = 0; column < inputs_.columns; column += kTileColumns) {
        const std::int64_t columns = std::min(kTileColumns, inputs_.columns - column);
        text_.pack(text, column, columns, 0, inputs_.width, threads_);
        text_channels_.pack(channels(inputs_.text, inputs_.columns, inputs_.text_stride), 0, inputs_.width, column,
                            columns, threads_);
        std::copy_n(gradients_.column_largest + column, columns, column_largest_.get());
        std::copy_n(gradients_.column_loss + column, columns, column_loss_.get());
        std::copy_n(gradients_.grad_column + column, columns, column_grad_.get());
        visit_rows(row, rows, column, columns);
        visit_columns(row, rows, column, columns);
      }
      finish_rows(row, rows);
    }
    finish_columns();
    *gradients_.grad_scale = grad_scale_;
    *gradients_.grad_bias = grad_bias_;
  }

 private:
  // Channels as lanes of a product that sums over rows.
  ProductSide channels(const void* data, std::int64_t rows, std::int64_t stride) const {
    return {inputs_.element, data, inputs_.width, rows, 1, stride};
  }

  // The gradients of logits as the left side of a product, by rows or by columns.
  ProductSide logit_grads(std::int64_t lanes, std::int64_t depth, bool by_rows) const {
    return {narrow_ ? Storage::bfloat16 : Storage::float32, logit_grads_.get(), lanes, depth, by_rows ? stride_ : 1,
            by_rows ? 1 : stride_};
  }

  float* text_sums() const {
    return inputs_.element == Storage::float32 ? static_cast<float*>(gradients_.grad_text) : text_sums_.get();
  }

  void visit_rows(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
    const ProductSide left = logit_grads(rows, columns, true);
    const std::int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
    parallel_for(blocks, threads_, [&](std::int64_t block, int thread) {
      TileScratch& scratch = *scratch_[static_cast<std::size_t>(thread)];
      const std::int64_t place = block * kRowBlock, count = std::min(kRowBlock, rows - place);
      float* data = narrow_ ? scratch.tile.get() : reinterpret_cast<float*>(logit_grads_.get()) + place * stride_;
      const SimilarityTile tile{data, stride_, count, columns, inputs_.scale, inputs_.bias};
      multiply_tile(inputs_, text_, row + place, tile, scratch.panels.get());
      differentiate(tile, row, place, column, scratch);
      if (narrow_) {
        float* rests = block_rests_.get() + block * stride_;
        std::fill_n(rests, stride_, 0.0f);
        kernel_.narrow(tile, reinterpret_cast<std::uint16_t*>(logit_grads_.get()) + place * stride_, stride_,
                       row_rests_.data() + place, rests);
      }
      text_channels_.multiply(left, place, count, 0, 0, inputs_.width, audio_sums_.get() + place * inputs_.width,
                              inputs_.width, column > 0, scratch.panels.get());
    });
    for (std::int64_t block = 0; narrow_ && block < blocks; ++block)
      for (std::int64_t c = 0; c < columns; ++c)
        column_rests_[static_cast<std::size_t>(column + c)] += block_rests_.get()[block * stride_ + c];
  }

  // Similarities to gradients of logits; `place` counts from the first row at hand.
  void differentiate(const SimilarityTile& tile, std::int64_t row, std::int64_t place, std::int64_t first_column,
                     TileScratch& scratch) {
    const std::int64_t first_row = row + place, last_column = first_column + tile.columns;
    float* saved = scratch.saved.get();
    for (std::int64_t r = 0; r < tile.rows; ++r)
      positives_.each(first_row + r, first_column, last_column, [&](std::int64_t column) {
        *saved++ = tile.data[r * tile.stride + column - first_column];
      });
    float weighted[kRowBlock], totals[kRowBlock];
    const float* row_grad = gradients_.grad_row + first_row;
    if (inputs_.sigmoid)
      kernel_.sigmoid_gradients(tile, row_grad, weighted, totals);
    else
      kernel_.softmax_gradients(tile, {gradients_.row_largest + first_row, gradients_.row_loss + first_row, row_grad},
                                {column_largest_.get(), column_loss_.get(), column_grad_.get()}, weighted, totals);
    saved = scratch.saved.get();
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      double& total = totals_[static_cast<std::size_t>(place + r)];
      double& weighted_total = weighted_[static_cast<std::size_t>(place + r)];
      total += totals[r];
      weighted_total += weighted[r];
      const float share = gradients_.grad_positive[first_row + r] /
                          static_cast<float>(std::max<std::int64_t>(positives_.count(first_row + r), 1));
      positives_.each(first_row + r, first_column, last_column, [&](std::int64_t column) {
        float& grad = tile.data[r * tile.stride + column - first_column];
        const float similarity = *saved++;
        const double before = grad;
        if (inputs_.sigmoid)
          grad = -row_grad[r] * sigmoid(-kernel_.logit(tile, similarity));
        else
          grad += share;
        total += grad - before;
        weighted_total += (grad - before) * similarity;
      });
    }
  }

  static float sigmoid(float x) {
    const float small = std::exp(-std::fabs(x));
    return (x < 0.0f ? small : 1.0f) / (1.0f + small);
  }

  void visit_columns(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
    const ProductSide left = logit_grads(columns, rows, false);
    parallel_for((columns + kRowBlock - 1) / kRowBlock, threads_, [&](std::int64_t block, int thread) {
      const std::int64_t place = block * kRowBlock, count = std::min(kRowBlock, columns - place);
      audio_channels_.multiply(left, place, count, 0, 0, inputs_.width,
                               text_sums() + (column + place) * inputs_.width, inputs_.width, row > 0,
                               scratch_[static_cast<std::size_t>(thread)]->panels.get());
    });
  }

  void finish_rows(std::int64_t row, std::int64_t rows) {
    if (inputs_.columns == 0) std::fill_n(audio_sums_.get(), rows * inputs_.width, 0.0f);
    const std::int64_t bytes = row_bytes(inputs_.element, inputs_.text_stride);
    for (std::int64_t r = 0; r < rows; ++r) {
      grad_scale_ += weighted_[static_cast<std::size_t>(r)];
      grad_bias_ += totals_[static_cast<std::size_t>(r)];
      float* sum = audio_sums_.get() + r * inputs_.width;
      if (narrow_)
        put_back(row_rests_[static_cast<std::size_t>(r)], positives_.first(row + r), inputs_.text, bytes, text_mean_,
                 sum);
      write(sum, gradients_.grad_audio, row + r);
    }
  }

  void finish_columns() {
    if (inputs_.rows == 0) std::fill_n(text_sums(), inputs_.columns * inputs_.width, 0.0f);
    const Positives rows_of(narrow_ ? inputs_.text_ids : nullptr, inputs_.columns, inputs_.audio_ids, inputs_.rows,
                            -inputs_.offset);
    const std::int64_t bytes = row_bytes(inputs_.element, inputs_.audio_stride);
    for (std::int64_t column = 0; column < inputs_.columns; ++column) {
      float* sum = text_sums() + column * inputs_.width;
      if (narrow_)
        put_back(column_rests_[static_cast<std::size_t>(column)], rows_of.first(column), inputs_.audio, bytes,
                 audio_mean_, sum);
      write(sum, gradients_.grad_text, column);
    }
  }

  void put_back(float rest, std::int64_t first, const void* data, std::int64_t bytes, const std::vector<float>& mean,
                float* sum) const {
    if (first >= 0) return kernel_.add_row(inputs_.element, static_cast<const char*>(data) + first * bytes, inputs_.width, rest, sum);
    for (std::int64_t i = 0; i < inputs_.width; ++i) sum[i] += rest * mean[static_cast<std::size_t>(i)];
  }

  void write(const float* sum, void* out, std::int64_t row) const {
    kernel_.write_row(inputs_.element, sum, inputs_.width, inputs_.scale,
                      static_cast<char*>(out) + row * row_bytes(inputs_.element, inputs_.width));
  }

  const ContrastiveInputs& inputs_;
  const ContrastiveGradients& gradients_;
  const ContrastiveKernel& kernel_;
  const MatrixProductKernel& products_;
  bool narrow_;
  int threads_;
  Positives positives_;
  std::int64_t group_, stride_;
  MatrixPanels text_, text_channels_, audio_channels_;
  AlignedArray<std::byte> logit_grads_;                                 // [group_, stride_]
  AlignedArray<float> audio_sums_, text_sums_;                          // [group_, width], [columns, width]
  AlignedArray<float> column_largest_, column_loss_, column_grad_;      // of the tile's columns
  AlignedArray<float> block_rests_;                                     // of the tile's columns, for each block of rows
  std::vector<float> column_rests_, row_rests_, text_mean_, audio_mean_;
  std::vector<double> weighted_, totals_;  // of the rows at hand: sums of gradients times similarities, of gradients
  double grad_scale_ = 0.0, grad_bias_ = 0.0;
  std::vector<std::unique_ptr<TileScratch>> scratch_;
};

}  // namespace

void contrastive_sums_backward(const ContrastiveInputs& inputs, const ContrastiveGradients& gradients, int threads) {
  check(inputs);
  Backward(inputs, gradients, threads).run();
}

}  // namespace slap_fast
