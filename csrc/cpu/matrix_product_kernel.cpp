// Packing and blocked product of packed panels; compiled once per instruction set.
#include "matrix_product_kernel.h"

#include "product_packing.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

using Operand = BestOperand;
using Value = Operand::Value;

constexpr std::int64_t kDepth = Operand::kDepth;
// Depth packed at once if lane_stride is 1: a cache line then holds elements of several panels.
constexpr std::int64_t kPackedDepth = 32;

template <class In>
void pack_side(const ProductSide& side, std::int64_t first_lane, std::int64_t lanes, std::int64_t first_depth,
               std::int64_t depth, Value* out) {
  const auto* data = static_cast<const typename In::Stored*>(side.data);
  const std::int64_t padded = round_up(depth, kDepth), last = first_lane + round_up(lanes, kLanes);
  if (side.depth_stride == 1) {
    // Vectors run along the depth; elements beyond the padded depth are dropped.
    const std::int64_t width = min(depth, side.depth - first_depth);
    const Source<In> source{data + first_depth, side.lane_stride, width, 0, side.lanes};
    const std::int64_t whole = padded / kLanes * kLanes;
    for (std::int64_t lane = first_lane; lane < last; lane += kLanes, out += padded * kLanes) {
      Packing<In, Operand>::panels(source, lane, kLanes, whole, out);
      if (whole == padded) continue;
      alignas(64) Value tail[kLanes * kLanes];
      Source<In> tail_source = source;
      tail_source.data += whole;
      tail_source.width -= whole;
      Packing<In, Operand>::panels(tail_source, lane, kLanes, kLanes, tail);
      __builtin_memcpy(out + whole * kLanes, tail,
                       static_cast<unsigned long>((padded - whole) * kLanes) * sizeof(Value));
    }
    return;
  }
  for (std::int64_t begin = 0; begin < padded; begin += kPackedDepth) {
    const std::int64_t count = min(kPackedDepth, padded - begin);
    for (std::int64_t lane = first_lane; lane < last; lane += kLanes) {
      const std::int64_t width = max(0, min(first_lane + lanes, side.lanes) - lane);
      const Source<In> source{data + lane, side.depth_stride, width, 0, min(side.depth, first_depth + depth)};
      Packing<In, Operand>::steps(source, first_depth + begin, count, kLanes,
                                  out + (lane - first_lane) * padded + begin * kLanes);
    }
  }
}

void pack(const ProductSide& side, std::int64_t first_lane, std::int64_t lanes, std::int64_t first_depth,
          std::int64_t depth, void* out) {
  dispatch_dtype(side.dtype, [&](auto format) {
    pack_side<decltype(format)>(side, first_lane, lanes, first_depth, depth, static_cast<Value*>(out));
  });
}

// At the edges of `out`: at most kRows rows, computed as a full tile and copied.
void multiply_edge(Left<Operand> left, Right<Operand> right, std::int64_t vectors, std::int64_t rows,
                   std::int64_t columns, std::int64_t steps, float* out, std::int64_t stride, bool accumulate) {
  constexpr std::int64_t kWidth = kMaxVectors * kLanes;
  alignas(64) float tile[kRows * kWidth] = {};
  if (accumulate) {
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c) tile[r * kWidth + c] = out[r * stride + c];
  }
  multiply<Operand>(vectors, left, right, steps, {tile, kWidth, accumulate, nullptr});
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) out[r * stride + c] = tile[r * kWidth + c];
}

void multiply_packed(const void* left, const void* right, std::int64_t rows, std::int64_t columns, std::int64_t depth,
                     float* out, std::int64_t stride, bool accumulate) {
  const std::int64_t padded = round_up(depth, kDepth), panel = padded * kLanes, steps = padded / kDepth;
  const std::int64_t panels = round_up(columns, kLanes) / kLanes;
  for (std::int64_t first = 0; first < panels; first += kMaxVectors) {
    const std::int64_t vectors = min(kMaxVectors, panels - first), column = first * kLanes;
    const std::int64_t width = min(vectors * kLanes, columns - column);
    const Right<Operand> right_panels{static_cast<const Value*>(right) + first * panel, panel, kLanes * kDepth};
    for (std::int64_t row = 0; row < rows; row += kRows) {
      const auto* values = static_cast<const Value*>(left) + row / kLanes * panel + row % kLanes * kDepth;
      const Left<Operand> left_rows{values, kDepth, kLanes * kDepth};
      float* corner = out + row * stride + column;
      if (row + kRows <= rows && width == vectors * kLanes)
        multiply<Operand>(vectors, left_rows, right_panels, steps, {corner, stride, accumulate, nullptr});
      else
        multiply_edge(left_rows, right_panels, vectors, min(kRows, rows - row), width, steps, corner, stride,
                      accumulate);
    }
  }
}

}  // namespace

const MatrixProductKernel matrix_product_kernel{kLanes, kDepth, sizeof(Value), pack, multiply_packed};

}  // namespace slap_fast::SLAP_FAST_ISA
