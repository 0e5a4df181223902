#include "matrix_product.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "aligned_array.h"
#include "isa.h"
#include "matrix_panels.h"
#include "parallel.h"
#include "rounding.h"

namespace slap_fast {
namespace {

// Columns packed at once: their panels, shared by all threads, stay in L3.
constexpr std::int64_t kColumnBlock = 40 * MatrixPanels::kLaneUnit;
// Columns per task if row blocks alone are too few tasks.
constexpr std::int64_t kColumnTask = 5 * MatrixPanels::kLaneUnit;
constexpr std::int64_t kTasksPerThread = 4;
// With at most as many rows, a column block is packed for too few multiplications to be worth the way through L3.
constexpr std::int64_t kFewRows = 2 * kRowBlock;
constexpr std::int64_t kFewRowsDepth = 4096;  // bounds the memory of the packed rows
constexpr std::int64_t kFewRowsColumns = MatrixPanels::kLaneUnit;
// Multiplications that justify one more thread. To read and pack the right matrix takes as long as a few rows.
constexpr double kWorkPerThread = 4e6;
constexpr std::int64_t kPackingRows = 8;

void check_side(const char* name, const ProductSide& side) {
  if (side.lanes < 0 || side.depth < 0)
    throw std::invalid_argument(std::string("the ") + name + " matrix has " + std::to_string(side.lanes) + " by " +
                                std::to_string(side.depth) + " elements; sizes cannot be negative");
  if (side.lane_stride != 1 && side.depth_stride != 1)
    throw std::invalid_argument(std::string("the ") + name + " matrix has strides " + std::to_string(side.lane_stride) +
                                " and " + std::to_string(side.depth_stride) + "; one of them must be 1");
}

// Each task packs its own columns just before it multiplies them with all rows: the panels stay in L1 and L2.
void multiply_few_rows(const MatrixProductKernel& kernel, const ProductSide& left, const ProductSide& right, float* out,
                       std::int64_t stride, bool accumulate, int threads) {
  const std::int64_t depth = left.depth, block = std::min(depth, MatrixPanels::depth_block(kernel));
  const std::int64_t blocks = (depth + block - 1) / block;
  const std::int64_t block_bytes = round_up(block, kernel.depth) * kernel.value_bytes;
  const std::int64_t rows_bytes = round_up(left.lanes, kernel.lanes) * block_bytes;
  AlignedArray<std::byte> packed_rows(blocks * rows_bytes);
  parallel_for(blocks, threads, [&](std::int64_t i, int) {
    kernel.pack(left, 0, left.lanes, i * block, std::min(block, depth - i * block), packed_rows.get() + i * rows_bytes);
  });
  const std::int64_t panel_bytes = round_up(kFewRowsColumns, kernel.lanes) * block_bytes;
  AlignedArray<std::byte> panels(threads * panel_bytes);
  parallel_for((right.lanes + kFewRowsColumns - 1) / kFewRowsColumns, threads, [&](std::int64_t task, int thread) {
    const std::int64_t column = task * kFewRowsColumns, width = std::min(kFewRowsColumns, right.lanes - column);
    std::byte* panel = panels.get() + thread * panel_bytes;
    for (std::int64_t i = 0; i < blocks; ++i) {
      const std::int64_t count = std::min(block, depth - i * block);
      kernel.pack(right, column, width, i * block, count, panel);
      kernel.multiply(packed_rows.get() + i * rows_bytes, panel, left.lanes, width, count, out + column, stride,
                      accumulate || i > 0);
    }
  });
}

}  // namespace

const MatrixProductKernel& chosen_matrix_product_kernel(DType dtype) {
  SLAP_FAST_DISPATCH_BF16(matrix_product_kernel, dtype);
}

void matrix_product(const ProductSide& left, const ProductSide& right, float* out, std::int64_t stride, bool accumulate,
                    int threads) {
  check_side("left", left);
  check_side("right", right);
  if (left.depth != right.depth || left.dtype != right.dtype)
    throw std::invalid_argument("the matrices have depths " + std::to_string(left.depth) + " and " +
                                std::to_string(right.depth) + "; depths and dtypes must be equal");
  const std::int64_t rows = left.lanes, columns = right.lanes, depth = left.depth;
  if (rows == 0 || columns == 0) return;
  if (depth == 0) {
    for (std::int64_t row = 0; row < rows && !accumulate; ++row) std::fill_n(out + row * stride, columns, 0.0f);
    return;
  }
  const MatrixProductKernel& kernel = chosen_matrix_product_kernel(left.dtype);
  const double work =
      static_cast<double>(rows + kPackingRows) * static_cast<double>(columns) * static_cast<double>(depth);
  const double max_threads = static_cast<double>(std::max(threads, 1));
  const int thread_count = static_cast<int>(std::clamp(work / kWorkPerThread, 1.0, max_threads));
  if (rows <= kFewRows && depth <= kFewRowsDepth)
    return multiply_few_rows(kernel, left, right, out, stride, accumulate, thread_count);
  const std::int64_t depth_block = std::min(depth, MatrixPanels::depth_block(kernel));
  MatrixPanels panels(kernel, std::min(columns, kColumnBlock), depth_block);
  const std::int64_t row_blocks = (rows + kRowBlock - 1) / kRowBlock;
  std::vector<std::unique_ptr<AlignedArray<std::byte>>> scratch;
  for (int thread = 0; thread < thread_count; ++thread)
    scratch.push_back(std::make_unique<AlignedArray<std::byte>>(panels.scratch_bytes()));
  for (std::int64_t first_column = 0; first_column < columns; first_column += kColumnBlock) {
    const std::int64_t width = std::min(kColumnBlock, columns - first_column);
    const std::int64_t task_width = row_blocks >= thread_count * kTasksPerThread ? kColumnBlock : kColumnTask;
    const std::int64_t column_tasks = (width + task_width - 1) / task_width;
    for (std::int64_t first_depth = 0; first_depth < depth; first_depth += depth_block) {
      panels.pack(right, first_column, width, first_depth, std::min(depth_block, depth - first_depth), thread_count);
      parallel_for(row_blocks * column_tasks, thread_count, [&](std::int64_t task, int thread) {
        const std::int64_t row = task / column_tasks * kRowBlock, column = task % column_tasks * task_width;
        panels.multiply(left, row, std::min(kRowBlock, rows - row), first_depth, column,
                        std::min(task_width, width - column), out + row * stride + first_column + column, stride,
                        accumulate || first_depth > 0, scratch[static_cast<std::size_t>(thread)]->get());
      });
    }
  }
}

}  // namespace slap_fast
