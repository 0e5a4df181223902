// Softmax attention inside each of N packed sequences, with windows.
#pragma once

#include <cstdint>

#include "varlen_attention_kernel.h"

namespace slap_fast {

constexpr std::int64_t kMaxHeadDim = 256;

// Packed clips: queries of clip i are cu_seqlens_q[i] .. cu_seqlens_q[i + 1] of total_q, keys and values likewise.
struct AttentionBatch {
  const std::int32_t *cu_seqlens_q, *cu_seqlens_k;  // [clips + 1]
  std::int64_t clips, total_q, total_k;
};

struct AttentionInputs {
  DType dtype;
  std::int64_t heads, kv_heads, head_dim;  // heads is a multiple of kv_heads
  std::int64_t left, right;                // keys visible on either side, both inclusive; -1 is unlimited
  float scale;
  HeadsView q, k, v;
};

// The query at i of a clip stands at position i + keys - queries among its keys. A query that sees no key gives 0 and
// an lse of -infinity. The bits depend on the clip and the instruction set alone, not on threads or neighbours.
// Throws std::invalid_argument for offsets that do not rise from 0 to the totals and for sizes that do not fit.
void varlen_attention(const AttentionInputs& inputs, const AttentionBatch& batch, const AttentionOutputs& outputs,
                      int threads);

// Gradients of all that the above reads, from those of all that it writes; the same holds for their bits.
void varlen_attention_backward(const AttentionInputs& inputs, const AttentionBatch& batch,
                               const AttentionGradients& gradients, int threads);

}  // namespace slap_fast
