// What both passes of the contrastive loss share: the kernels, and how logits are cut into tiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "aligned_array.h"
#include "contrastive.h"
#include "contrastive_kernel.h"
#include "matrix_panels.h"
#include "rounding.h"

namespace slap_fast {

// Columns of a tile: a multiple of depth blocks and of lane units. A tile of kRowBlock rows takes 576 KiB in float32,
// which leaves room in L2 for what is multiplied.
constexpr std::int64_t kTileColumns = 1536;

// Rows between two joins of what tiles give for columns: enough that threads seldom wait, few enough for memory. A
// multiple of row blocks and depth blocks.
constexpr std::int64_t kChunkRows = 1536, kMaxChunkRows = 4 * kChunkRows;

const ContrastiveKernel& chosen_contrastive_kernel(DType dtype);

// Throws std::invalid_argument.
void check(const ContrastiveInputs& inputs);

std::int64_t chunk_rows(const ContrastiveInputs& inputs, int threads);

// As many threads as are worth it for `products` products of all rows, columns and channels.
int useful_threads(const ContrastiveInputs& inputs, double products, int threads);

std::int64_t row_bytes(DType dtype, std::int64_t stride);

// The mean of rows, [width].
std::vector<float> mean_row(const ContrastiveKernel& kernel, DType dtype, const void* data, std::int64_t rows,
                            std::int64_t stride, std::int64_t width);

// What a thread works with.
struct TileScratch {
  TileScratch(std::int64_t tile_columns, std::int64_t panel_bytes);
  AlignedArray<float> tile, saved;  // [kRowBlock, tile_columns]
  AlignedArray<std::byte> panels;
};
std::vector<std::unique_ptr<TileScratch>> tile_scratch(int threads, std::int64_t tile_columns,
                                                       std::int64_t panel_bytes);

// The similarities of rows first_row .. first_row + rows with the packed columns.
void multiply_tile(const ContrastiveInputs& inputs, const MatrixPanels& text, std::int64_t first_row,
                   const SimilarityTile& tile, void* scratch);

}  // namespace slap_fast
