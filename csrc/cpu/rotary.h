// Rotary position embedding of packed tokens over one axis (position) or two (frame, row within the frame).
#pragma once

#include <cstdint>
#include <vector>

#include "dtype.h"

namespace slap_fast {

struct RotarySpec {
  std::int64_t head_dim;          // a multiple of 2 * axes
  std::int64_t tokens_per_frame;  // 1 with one axis
  std::vector<double> thetas;     // base frequency of each axis
  bool inverse;                   // rotates by the negative angle
};

// [total, heads, head_dim] with a unit last stride; strides in elements. `out` is `in` or does not overlap it.
struct RotaryTokens {
  const void* in;
  void* out;
  std::int64_t heads;
  std::int64_t in_token_stride, in_head_stride;
  std::int64_t out_token_stride, out_head_stride;
};

// Rotates every tensor of `parts` by each token's position in its sequence.
//
// Each axis has channels = head_dim / axes; channels i and i + channels / 2 rotate by position * theta^(-2i /
// channels). Angles are float64, cosines and sines are rounded to float32, products are float32 and the result is
// rounded once. A token's bits depend on its values and position only. Throws std::invalid_argument for invalid
// cu_seqlens [sequences + 1] or an inconsistent spec.
void rotate(const RotarySpec& spec, const std::int64_t* cu_seqlens, std::int64_t sequences, std::int64_t total,
            DType dtype, const std::vector<RotaryTokens>& parts, int threads);

}  // namespace slap_fast
