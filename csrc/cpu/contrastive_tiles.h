// Tiling shared by the forward and backward pass of the contrastive losses.
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

// Columns per tile, a multiple of the depth block and of kLaneUnit. A float32 tile of kRowBlock rows takes 576 KiB and
// leaves room in L2 for the operands.
constexpr std::int64_t kTileColumns = 1536;

// Rows per chunk; the column statistics of row blocks are merged after each chunk. Large enough to amortize the
// barrier, small enough for memory. A multiple of kRowBlock and of the depth block.
constexpr std::int64_t kChunkRows = 1536, kMaxChunkRows = 4 * kChunkRows;

const ContrastiveKernel& chosen_contrastive_kernel(DType dtype);

// Throws std::invalid_argument for negative sizes.
void check(const ContrastiveInputs& inputs);

std::int64_t chunk_rows(const ContrastiveInputs& inputs, int threads);

// Threads worth using for `products` matrix products of [rows, width] and [width, columns].
int useful_threads(const ContrastiveInputs& inputs, double products, int threads);

std::int64_t row_bytes(DType dtype, std::int64_t stride);

// The mean of rows, [width].
std::vector<float> mean_row(const ContrastiveKernel& kernel, DType dtype, const void* data, std::int64_t rows,
                            std::int64_t stride, std::int64_t width);

// Per-thread scratch.
struct TileScratch {
  TileScratch(std::int64_t tile_columns, std::int64_t panel_bytes);
  AlignedArray<float> tile, saved;  // [kRowBlock, tile_columns]
  AlignedArray<std::byte> panels;
};
std::vector<std::unique_ptr<TileScratch>> tile_scratch(int threads, std::int64_t tile_columns,
                                                       std::int64_t panel_bytes);

// Fills the tile with audio[first_row : first_row + rows] @ text.T for the packed columns.
void multiply_tile(const ContrastiveInputs& inputs, const MatrixPanels& text, std::int64_t first_row,
                   const SimilarityTile& tile, void* scratch);

}  // namespace slap_fast
