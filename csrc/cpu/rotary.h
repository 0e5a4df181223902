// Rotary position embedding of packed tokens, along one axis (position) or two (frame, row in the frame).
#pragma once

#include <cstdint>
#include <vector>

#include "dtype.h"

namespace slap_fast {

struct RotarySpec {
  std::int64_t head_dim;          // a multiple of twice the axes
  std::int64_t tokens_per_frame;  // of two axes; 1 for one
  std::vector<double> thetas;     // one base an axis
  bool inverse;                   // turns back
};

// [total, heads, head_dim], channels side by side, strides in elements. `out` may be `in`, else they do not overlap.
struct RotaryTokens {
  const void* in;
  void* out;
  std::int64_t heads;
  std::int64_t in_token_stride, in_head_stride;
  std::int64_t out_token_stride, out_head_stride;
};

// Rotates each of `parts` by the position of each token in its sequence.
//
// Channels i and i + head_dim / axes / 2 of an axis' channels turn by position * theta^(-2i / channels). Angles are in
// double, cosines and sines rounded to float32, products in float32, and the result is rounded once. A token's bits
// depend on itself and its position alone.
// Throws std::invalid_argument unless cu_seqlens [sequences + 1] rises from 0 to total and the spec holds together.
void rotate(const RotarySpec& spec, const std::int64_t* cu_seqlens, std::int64_t sequences, std::int64_t total,
            DType dtype, const std::vector<RotaryTokens>& parts, int threads);

}  // namespace slap_fast
