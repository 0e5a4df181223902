// The right side of a product, packed once for all rows of the left side.
#pragma once

#include <cstddef>
#include <cstdint>

#include "aligned_array.h"
#include "matrix_product_kernel.h"

namespace slap_fast {

// Rows of the left side that a thread packs for itself, a multiple of what any micro-kernel takes at once.
constexpr std::int64_t kRowBlock = 96;

class MatrixPanels {
 public:
  // For at most `lanes` lanes and `depth` elements of each.
  MatrixPanels(const MatrixProductKernel& kernel, std::int64_t lanes, std::int64_t depth);

  // How much of the depth is multiplied at once: results are read and written once for each.
  static std::int64_t depth_block(const MatrixProductKernel& kernel);

  // Packs lanes first_lane .. first_lane + lanes, of them the elements first_depth .. first_depth + depth.
  void pack(const ProductSide& side, std::int64_t first_lane, std::int64_t lanes, std::int64_t first_depth,
            std::int64_t depth, int threads);

  // out [rows, lanes] (+)= rows first_row .. first_row + rows of the left side, of each the elements from first_depth
  // on, times the packed lanes from `first_lane` on, which is a multiple of kLaneUnit. `rows` is at most kRowBlock.
  void multiply(const ProductSide& left, std::int64_t first_row, std::int64_t rows, std::int64_t first_depth,
                std::int64_t first_lane, std::int64_t lanes, float* out, std::int64_t stride, bool accumulate,
                void* scratch) const;

  // Of the scratch of multiply(), aligned to 64.
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
