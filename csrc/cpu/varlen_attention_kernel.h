// One stretch of one clip and head, by instruction set. Plain pointers only: see simd.h.
#pragma once

#include <cstdint>

namespace slap_fast {

enum class Element : std::uint8_t { float32, bfloat16, float16 };

// [tokens, heads, head_dim] with a unit last stride; strides in elements.
struct HeadsView {
  const void* data;
  std::int64_t token_stride, head_stride;
};

struct AttentionView {
  Element element;
  std::int64_t heads, kv_heads, head_dim, total_q;
  std::int64_t left, right;  // keys visible on either side of a query, kUnlimited at most
  float scale;
  HeadsView q, k, v;
};

constexpr std::int64_t kUnlimited = std::int64_t{1} << 40;

// Of one clip: where it lies, and the positions first .. last that a task owns. Positions count keys: the clip's key j is
// at j, its query i at i + keys - queries.
struct AttentionStretch {
  std::int64_t begin_q, queries, begin_k, keys;
  std::int64_t first, last;
};

struct AttentionOutputs {
  void* out;   // [Tq, H, D], contiguous
  float* lse;  // [H, Tq]
};

struct AttentionKernel {
  // Bytes of scratch, aligned to 64, for stretches of at most `rows` queries that see at most `keys` keys.
  std::int64_t (*forward_bytes)(const AttentionView& view, std::int64_t rows, std::int64_t keys);
  // The outputs of the queries that the stretch owns; it owns one at least.
  void (*forward)(const AttentionView& view, const AttentionStretch& stretch, std::int64_t head,
                  const AttentionOutputs& outputs, void* scratch);
};

#define SLAP_FAST_ATTENTION_KERNEL(isa)                                                                       \
  namespace isa {                                                                                             \
  std::int64_t attention_forward_bytes(const AttentionView& view, std::int64_t rows, std::int64_t keys);       \
  void attention_forward(const AttentionView& view, const AttentionStretch& stretch, std::int64_t head,       \
                         const AttentionOutputs& outputs, void* scratch);                                     \
  }

SLAP_FAST_ATTENTION_KERNEL(baseline)
SLAP_FAST_ATTENTION_KERNEL(avx2)
SLAP_FAST_ATTENTION_KERNEL(avx512)
SLAP_FAST_ATTENTION_KERNEL(avx512_bf16)

}  // namespace slap_fast
