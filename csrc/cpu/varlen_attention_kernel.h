// Attention over one segment of one clip and head, one table per instruction set. Plain pointers only: see simd.h.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace slap_fast {

// [tokens, heads, head_dim] with a unit last stride; strides in elements.
struct HeadsView {
  const void* data;
  std::int64_t token_stride, head_stride;
};

struct AttentionView {
  DType dtype;
  std::int64_t heads, kv_heads, head_dim, total_q;
  std::int64_t left, right;  // window: visible keys on either side of a query, at most kUnlimited
  float scale;
  HeadsView q, k, v;
};

constexpr std::int64_t kUnlimited = std::int64_t{1} << 40;

// A clip's tokens and the positions [first, last) owned by a task. Positions count keys: key j is at j, query i at i +
// keys - queries.
struct AttentionSegment {
  std::int64_t begin_q, queries, begin_k, keys;
  std::int64_t first, last;
};

struct AttentionOutputs {
  void* out;   // [Tq, H, D], contiguous
  float* lse;  // [H, Tq]
};

struct AttentionGradients {
  HeadsView grad_out, out;
  const float *lse, *grad_lse;     // [H, Tq]
  void *grad_q, *grad_k, *grad_v;  // [Tq, H, D], [Tk, Hk, D], [Tk, Hk, D], contiguous
};

struct AttentionKernel {
  // Bytes of scratch (64-byte aligned) for segments of at most `rows` positions that see at most `keys` keys.
  std::int64_t (*forward_bytes)(const AttentionView& view, std::int64_t rows, std::int64_t keys);
  std::int64_t (*backward_bytes)(const AttentionView& view, std::int64_t rows, std::int64_t keys);
  // Outputs of the segment's queries, at least one, for heads [first_head, last_head).
  void (*forward)(const AttentionView& view, const AttentionSegment& segment, std::int64_t first_head,
                  std::int64_t last_head, const AttentionOutputs& outputs, void* scratch);
  // Gradients of the segment's queries and keys. Every segment but a clip's last is a multiple of kSegmentUnit
  // positions.
  void (*backward)(const AttentionView& view, const AttentionSegment& segment, std::int64_t first_kv_head,
                   std::int64_t last_kv_head, const AttentionGradients& gradients, void* scratch);
};

constexpr std::int64_t kSegmentUnit = 32;

#define SLAP_FAST_ATTENTION_KERNELS(isa)                                                                          \
  namespace isa {                                                                                                 \
  std::int64_t attention_forward_bytes(const AttentionView& view, std::int64_t rows, std::int64_t keys);          \
  std::int64_t attention_backward_bytes(const AttentionView& view, std::int64_t rows, std::int64_t keys);         \
  void attention_forward(const AttentionView& view, const AttentionSegment& segment, std::int64_t first_head,     \
                         std::int64_t last_head, const AttentionOutputs& outputs, void* scratch);                 \
  void attention_backward(const AttentionView& view, const AttentionSegment& segment, std::int64_t first_kv_head, \
                          std::int64_t last_kv_head, const AttentionGradients& gradients, void* scratch);         \
  inline constexpr AttentionKernel attention_kernel{attention_forward_bytes, attention_backward_bytes,            \
                                                    attention_forward, attention_backward};                       \
  }

SLAP_FAST_ATTENTION_KERNELS(baseline)
SLAP_FAST_ATTENTION_KERNELS(avx2)
SLAP_FAST_ATTENTION_KERNELS(avx512)
SLAP_FAST_ATTENTION_KERNELS(avx512_bf16)

}  // namespace slap_fast
