#include "contrastive_tiles.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "matrix_product.h"

namespace slap_fast {
namespace {

// Multiplications that justify one more thread.
constexpr double kWorkPerThread = 4e6;
// Rows per partial sum: blocked summation keeps float32 accurate.
constexpr std::int64_t kRowsPerSum = 64;

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

}  // namespace

const ContrastiveKernel& chosen_contrastive_kernel(DType dtype) { SLAP_FAST_DISPATCH_BF16(contrastive_kernel, dtype); }

void check(const ContrastiveInputs& inputs) {
  require(inputs.rows >= 0 && inputs.columns >= 0 && inputs.width >= 0,
          "there are " + std::to_string(inputs.rows) + " rows, " + std::to_string(inputs.columns) + " columns and " +
              std::to_string(inputs.width) + " channels; sizes cannot be negative");
  constexpr std::int64_t kFar = std::int64_t{1} << 62;
  require(inputs.offset > -kFar && inputs.offset < kFar,
          "offset is " + std::to_string(inputs.offset) + "; its magnitude must be below 2^62");
}

std::int64_t chunk_rows(const ContrastiveInputs& inputs, int threads) {
  constexpr std::int64_t kTasksPerThread = 4;
  std::int64_t rows = round_up(std::max(threads, 1) * kTasksPerThread * kRowBlock, kChunkRows);
  if (inputs.chunk_size > 0) rows = std::min(rows, inputs.chunk_size);
  return round_up(std::min({rows, std::max<std::int64_t>(inputs.rows, 1), kMaxChunkRows}), kRowBlock);
}

int useful_threads(const ContrastiveInputs& inputs, double products, int threads) {
  const double work = products * static_cast<double>(inputs.rows) * static_cast<double>(inputs.columns) *
                      static_cast<double>(inputs.width);
  return static_cast<int>(std::clamp(work / kWorkPerThread, 1.0, static_cast<double>(std::max(threads, 1))));
}

std::int64_t row_bytes(DType dtype, std::int64_t stride) { return (dtype == DType::float32 ? 4 : 2) * stride; }

std::vector<float> mean_row(const ContrastiveKernel& kernel, DType dtype, const void* data, std::int64_t rows,
                            std::int64_t stride, std::int64_t width) {
  std::vector<float> mean(static_cast<std::size_t>(width)), partial(mean.size());
  const float factor = 1.0f / static_cast<float>(std::max<std::int64_t>(rows, 1));
  for (std::int64_t first = 0; first < rows; first += kRowsPerSum) {
    std::fill(partial.begin(), partial.end(), 0.0f);
    for (std::int64_t row = first; row < std::min(first + kRowsPerSum, rows); ++row)
      kernel.add_row(dtype, static_cast<const char*>(data) + row * row_bytes(dtype, stride), width, factor,
                     partial.data());
    std::transform(partial.begin(), partial.end(), mean.begin(), mean.begin(), [](float a, float b) { return a + b; });
  }
  return mean;
}

TileScratch::TileScratch(std::int64_t tile_columns, std::int64_t panel_bytes)
    : tile(kRowBlock * tile_columns), saved(kRowBlock * tile_columns), panels(panel_bytes) {}

std::vector<std::unique_ptr<TileScratch>> tile_scratch(int threads, std::int64_t tile_columns,
                                                       std::int64_t panel_bytes) {
  std::vector<std::unique_ptr<TileScratch>> scratch;
  for (int thread = 0; thread < threads; ++thread)
    scratch.push_back(std::make_unique<TileScratch>(tile_columns, panel_bytes));
  return scratch;
}

void multiply_tile(const ContrastiveInputs& inputs, const MatrixPanels& text, std::int64_t first_row,
                   const SimilarityTile& tile, void* scratch) {
  if (inputs.width == 0) std::fill_n(tile.data, tile.rows * tile.stride, 0.0f);
  const ProductSide audio{inputs.dtype, inputs.audio, inputs.rows, inputs.width, inputs.audio_stride, 1};
  text.multiply(audio, first_row, tile.rows, 0, 0, tile.columns, tile.data, tile.stride, false, scratch);
}

}  // namespace slap_fast
