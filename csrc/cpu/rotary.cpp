#include "rotary.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "packed_offsets.h"
#include "parallel.h"
#include "rotary_kernel.h"

namespace slap_fast {
namespace {

constexpr std::int64_t kTokensPerBlock = 128;
// Channels that justify one more thread.
constexpr std::int64_t kChannelsPerThread = 1 << 17;
// position = anchor + offset with the anchor a multiple of kTableSize. cos and sin of offsets come from a table, those
// of anchors are computed once per anchor.
constexpr std::int64_t kTableSize = 64;

RotaryKernels chosen_kernels() { SLAP_FAST_DISPATCH(rotary_kernels()); }

// Frequencies of an axis, and cos and sin of its first kTableSize positions.
struct AxisTable {
  std::int64_t half;
  std::vector<double> frequency;                    // [half], negated if inverse
  std::vector<double> table_cos, table_sin;         // [kNear, half]
  std::vector<float> table_cos_f32, table_sin_f32;  // [kTableSize, half], rounded to float32

  AxisTable(double theta, std::int64_t half_, bool inverse)
      : half(half_),
        table_cos(kTableSize * half_),
        table_sin(table_cos),
        table_cos_f32(table_cos.size()),
        table_sin_f32(table_cos_f32) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double exponent = -static_cast<double>(i) / static_cast<double>(half);
      frequency.push_back((inverse ? -1.0 : 1.0) * std::pow(theta, exponent));
      // 63 successive rotations in float64 lose a few ulp.
      const double cos_step = std::cos(frequency.back()), sin_step = std::sin(frequency.back());
      double cos = 1.0, sin = 0.0;
      for (std::int64_t at = i; at < kTableSize * half; at += half) {
        table_cos[at] = cos;
        table_sin[at] = sin;
        cos = table_cos[at] * cos_step - table_sin[at] * sin_step;
        sin = table_sin[at] * cos_step + table_cos[at] * sin_step;
      }
    }
    std::copy(table_cos.begin(), table_cos.end(), table_cos_f32.begin());
    std::copy(table_sin.begin(), table_sin.end(), table_sin_f32.begin());
  }
};

// Cosines and sines of one axis at successive positions. The bits do not depend on the order of lookups.
class AngleCache {
 public:
  AngleCache(const AxisTable& axis, const RotaryKernels& kernels)
      : axis_(axis),
        kernels_(kernels),
        anchor_cos_(axis.frequency.size()),
        anchor_sin_(anchor_cos_.size()),
        cos_(anchor_cos_.size()),
        sin_(anchor_cos_.size()) {}

  void lookup(std::int64_t position, const float*& cos, const float*& sin) {
    const std::int64_t table_row = position % kTableSize * axis_.half;
    if (position < kTableSize) {
      cos = axis_.table_cos_f32.data() + table_row;
      sin = axis_.table_sin_f32.data() + table_row;
      return;
    }
    if (position != position_) {
      set_anchor(position - position % kTableSize);
      kernels_.add_angles(axis_.half, anchor_cos_.data(), anchor_sin_.data(), axis_.table_cos.data() + table_row,
                          axis_.table_sin.data() + table_row, cos_.data(), sin_.data());
      position_ = position;
    }
    cos = cos_.data();
    sin = sin_.data();
  }

 private:
  void set_anchor(std::int64_t anchor) {
    if (anchor == anchor_) return;
    for (std::size_t i = 0; i < anchor_cos_.size(); ++i) {
      const double angle = static_cast<double>(anchor) * axis_.frequency[i];
      anchor_cos_[i] = std::cos(angle);
      anchor_sin_[i] = std::sin(angle);
    }
    anchor_ = anchor;
  }

  const AxisTable& axis_;
  const RotaryKernels& kernels_;
  std::vector<double> anchor_cos_, anchor_sin_;
  std::vector<float> cos_, sin_;
  std::int64_t position_ = -1, anchor_ = -1;
};

void check(const RotarySpec& spec, const std::vector<RotaryTokens>& parts) {
  const std::int64_t axes = static_cast<std::int64_t>(spec.thetas.size());
  if (axes != 1 && axes != 2)
    throw std::invalid_argument("there are " + std::to_string(axes) + " bases theta; pass one for each of 1 or 2 axes");
  for (double theta : spec.thetas)
    if (!(theta > 0.0 && std::isfinite(theta)))
      throw std::invalid_argument("theta is " + std::to_string(theta) + "; it must be positive and finite");
  if (spec.head_dim < 0 || spec.head_dim % (2 * axes) != 0)
    throw std::invalid_argument("the head dimension " + std::to_string(spec.head_dim) + " is not a multiple of " +
                                std::to_string(2 * axes));
  if (spec.tokens_per_frame < 1)
    throw std::invalid_argument("tokens_per_frame is " + std::to_string(spec.tokens_per_frame) +
                                "; it must be at least 1");
  for (const RotaryTokens& part : parts)
    if (part.heads < 0)
      throw std::invalid_argument("there are " + std::to_string(part.heads) + " heads; that cannot be negative");
}

std::int64_t bytes_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

}  // namespace

void rotate(const RotarySpec& spec, const std::int64_t* cu_seqlens, std::int64_t sequences, std::int64_t total,
            DType dtype, const std::vector<RotaryTokens>& parts, int threads) {
  check(spec, parts);
  check_offsets("cu_seqlens", cu_seqlens, sequences, total, "tokens", "the batch");
  const RotaryKernels kernels = chosen_kernels();
  const std::int64_t half = spec.head_dim / (2 * static_cast<std::int64_t>(spec.thetas.size()));
  const std::int64_t bytes = bytes_of(dtype);
  const bool axial = spec.thetas.size() == 2;
  std::vector<AxisTable> axes;
  for (double theta : spec.thetas) axes.emplace_back(theta, half, spec.inverse);

  const auto rotate_block = [&](std::int64_t begin, std::int64_t end) {
    std::vector<AngleCache> angles;
    for (const AxisTable& axis : axes) angles.emplace_back(axis, kernels);
    CosSin cos_sin{static_cast<std::int64_t>(axes.size()), half, {}, {}};
    const std::int64_t* next = std::upper_bound(cu_seqlens, cu_seqlens + sequences, begin);
    for (std::int64_t token = begin; token < end; ++token) {
      while (*next <= token) ++next;
      const std::int64_t position = token - next[-1];
      angles[0].lookup(axial ? position / spec.tokens_per_frame : position, cos_sin.cos[0], cos_sin.sin[0]);
      if (axial) angles[1].lookup(position % spec.tokens_per_frame, cos_sin.cos[1], cos_sin.sin[1]);
      for (const RotaryTokens& part : parts)
        kernels.rotate(dtype, static_cast<const char*>(part.in) + bytes * token * part.in_token_stride,
                       static_cast<char*>(part.out) + bytes * token * part.out_token_stride, part.heads,
                       part.in_head_stride, part.out_head_stride, cos_sin);
    }
  };

  std::int64_t heads = 0;
  for (const RotaryTokens& part : parts) heads += part.heads;
  const std::int64_t useful = total * heads * spec.head_dim / kChannelsPerThread;
  threads = static_cast<int>(std::clamp<std::int64_t>(useful, 1, std::max(threads, 1)));
  parallel_for((total + kTokensPerBlock - 1) / kTokensPerBlock, threads, [&](std::int64_t block, int) {
    rotate_block(block * kTokensPerBlock, std::min(total, (block + 1) * kTokensPerBlock));
  });
}

}  // namespace slap_fast
