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

namespace slap_fast {
namespace {

// Columns packed at once: their panels, shared by all threads, stay in L3.
constexpr std::int64_t kColumnBlock = 40 * MatrixPanels::kLaneUnit;
// Columns per task if row blocks alone are too few tasks.
constexpr std::int64_t kColumnTask = 5 * MatrixPanels::kLaneUnit;
constexpr std::int64_t kTasksPerThread = 4;
// Multiplications that justify one more thread.
constexpr double kWorkPerThread = 4e6;

void check_side(const char* name, const ProductSide& side) {
  if (side.lanes < 0 || side.depth < 0)
    throw std::invalid_argument(std::string("the ") + name + " matrix has " + std::to_string(side.lanes) + " by " +
                                std::to_string(side.depth) + " elements; sizes cannot be negative");
  if (side.lane_stride != 1 && side.depth_stride != 1)
    throw std::invalid_argument(std::string("the ") + name + " matrix has strides " + std::to_string(side.lane_stride) +
                                " and " + std::to_string(side.depth_stride) + "; one of them must be 1");
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
  const double work = static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(depth);
  const double max_threads = static_cast<double>(std::max(threads, 1));
  const int thread_count = static_cast<int>(std::clamp(work / kWorkPerThread, 1.0, max_threads));
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
