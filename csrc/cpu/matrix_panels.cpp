#include "matrix_panels.h"

#include <algorithm>

#include "parallel.h"
#include "rounding.h"

namespace slap_fast {
namespace {

// Bytes per lane of a depth block: kRowBlock packed rows then take 144 KiB of L2.
constexpr std::int64_t kDepthBytes = 1536;
// Lanes per packing task.
constexpr std::int64_t kPackedLanes = 5 * MatrixPanels::kLaneUnit;

}  // namespace

MatrixPanels::MatrixPanels(const MatrixProductKernel& kernel, std::int64_t lanes, std::int64_t depth)
    : kernel_(kernel),
      max_depth_(round_up(std::min(depth, depth_block(kernel)), kernel.depth)),
      panels_(round_up(lanes, kernel.lanes) * round_up(depth, kernel.depth) * kernel.value_bytes) {}

std::int64_t MatrixPanels::depth_block(const MatrixProductKernel& kernel) { return kDepthBytes / kernel.value_bytes; }

std::int64_t MatrixPanels::lane_bytes(std::int64_t depth) const {
  return round_up(depth, kernel_.depth) * kernel_.value_bytes;
}

std::int64_t MatrixPanels::scratch_bytes() const { return kRowBlock * lane_bytes(max_depth_); }

void MatrixPanels::pack(const ProductSide& side, std::int64_t first_lane, std::int64_t lanes, std::int64_t first_depth,
                        std::int64_t depth, int threads) {
  lanes_ = round_up(lanes, kernel_.lanes);
  depth_ = depth;
  const std::int64_t block = depth_block(kernel_), lane_tasks = (lanes + kPackedLanes - 1) / kPackedLanes;
  parallel_for(lane_tasks * ((depth + block - 1) / block), threads, [&](std::int64_t task, int) {
    const std::int64_t begin = task / lane_tasks * block, depth_count = std::min(block, depth - begin);
    const std::int64_t lane = task % lane_tasks * kPackedLanes;
    kernel_.pack(side, first_lane + lane, std::min(kPackedLanes, lanes - lane), first_depth + begin, depth_count,
                 panels_.get() + lanes_ * lane_bytes(begin) + lane * lane_bytes(depth_count));
  });
}

void MatrixPanels::multiply(const ProductSide& left, std::int64_t first_row, std::int64_t rows,
                            std::int64_t first_depth, std::int64_t first_lane, std::int64_t lanes, float* out,
                            std::int64_t stride, bool accumulate, void* scratch) const {
  for (std::int64_t begin = 0; begin < depth_; begin += depth_block(kernel_), accumulate = true) {
    const std::int64_t depth_count = std::min(depth_block(kernel_), depth_ - begin);
    kernel_.pack(left, first_row, rows, first_depth + begin, depth_count, scratch);
    const std::byte* panels = panels_.get() + lanes_ * lane_bytes(begin) + first_lane * lane_bytes(depth_count);
    kernel_.multiply(scratch, panels, rows, lanes, depth_count, out, stride, accumulate);
  }
}

}  // namespace slap_fast
