// Right operand of a matrix product, packed once for all rows of the left operand.
#pragma once

#include <cstddef>
#include <cstdint>

#include "aligned_array.h"
#include "matrix_product_kernel.h"

namespace slap_fast {

// Rows of the left operand packed per task: a multiple of every micro-kernel's kRows.
constexpr std::int64_t kRowBlock = 96;

class MatrixPanels {
 public:
  // Capacity: [lanes, depth].
  MatrixPanels(const MatrixProductKernel& kernel, std::int64_t lanes, std::int64_t depth);

  // Depth multiplied at once; `out` is read and written once per depth block.
  static std::int64_t depth_block(const MatrixProductKernel& kernel);

  // Packs lanes [first_lane, first_lane + lanes) of depth [first_depth, first_depth + depth).
  void pack(const ProductSide& side, std::int64_t first_lane, std::int64_t lanes, std::int64_t first_depth,
            std::int64_t depth, int threads);

  // out [rows, lanes] (+)= rows [first_row, first_row + rows) of `left`, from first_depth on, times the packed lanes
  // from first_lane on. rows <= kRowBlock; first_lane is a multiple of kLaneUnit.
  void multiply(const ProductSide& left, std::int64_t first_row, std::int64_t rows, std::int64_t first_depth,
                std::int64_t first_lane, std::int64_t lanes, float* out, std::int64_t stride, bool accumulate,
                void* scratch) const;

  // Size of the scratch for multiply(), which must be 64-byte aligned.
  std::int64_t scratch_bytes() const;

  static constexpr std::int64_t kLaneUnit = 48;

 private:
  std::int64_t lane_bytes(std::int64_t depth) const;

  const MatrixProductKernel& kernel_;
  std::int64_t max_depth_;
  AlignedArray<std::byte> panels_;
  std::int64_t lanes_ = 0, depth_ = 0;
};

}  // namespace slap_fast
