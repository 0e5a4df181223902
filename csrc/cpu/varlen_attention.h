// Variable-length softmax attention with sliding windows over packed clips.
#pragma once

#include <cstdint>

#include "varlen_attention_kernel.h"

namespace slap_fast {

constexpr std::int64_t kMaxHeadDim = 256;

// Clip i has queries [cu_seqlens_q[i], cu_seqlens_q[i + 1]), and keys and values likewise.
struct AttentionBatch {
  const std::int32_t *cu_seqlens_q, *cu_seqlens_k;  // [clips + 1]
  std::int64_t clips, total_q, total_k;
};

struct AttentionInputs {
  DType dtype;
  std::int64_t heads, kv_heads, head_dim;  // heads is a multiple of kv_heads
  std::int64_t left, right;                // window: visible keys before and after a query's position; -1: unlimited
  float scale;
  HeadsView q, k, v;
};

// Query i of a clip is aligned to key i + keys - queries. A query that sees no key gives 0 and an lse of -infinity. A
// clip's results are bitwise independent of the other clips and of the thread count. Throws std::invalid_argument for
// invalid offsets or sizes.
void varlen_attention(const AttentionInputs& inputs, const AttentionBatch& batch, const AttentionOutputs& outputs,
                      int threads);

// Gradients of q, k and v from those of out and lse, with the same guarantees.
void varlen_attention_backward(const AttentionInputs& inputs, const AttentionBatch& batch,
                               const AttentionGradients& gradients, int threads);

}  // namespace slap_fast
