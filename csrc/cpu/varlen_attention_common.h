// Helpers shared by the attention kernels: visible key ranges, packing origins, scratch, prefetching. See simd.h for
// the namespace.
#pragma once

#include <cstdint>

#include "product_packing.h"
#include "varlen_attention_kernel.h"

namespace slap_fast::SLAP_FAST_ISA {

constexpr float kInfinity = __builtin_inff();
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// Factor from a score to an exponent of 2: |scale| * log2(e); the sign of scale is folded into the queries. At least
// the smallest normal float: 0 would turn the -infinity of masked keys into NaN.
SLAP_FAST_INLINE float exponent_unit(float scale) {
  const float magnitude = scale < 0.0f ? -scale : scale;
  return (magnitude < 1.17549435e-38f ? 1.17549435e-38f : magnitude) * kLog2E;
}

// Half-open range [begin, end).
struct Range {
  std::int64_t begin, end;
  bool empty() const { return begin >= end; }
  std::int64_t size() const { return end - begin; }
};

SLAP_FAST_INLINE Range intersect(Range a, Range b) { return {max(a.begin, b.begin), min(a.end, b.end)}; }

// Union of the keys visible to queries at positions [begin, end). Both bounds are non-decreasing in the position.
SLAP_FAST_INLINE Range visible_keys(const AttentionView& view, const AttentionSegment& segment, std::int64_t begin,
                                    std::int64_t end) {
  const std::int64_t first = max(0, begin - view.left);
  return {first, max(first, min(segment.keys, end + view.right))};
}

// The last panel boundary at or before `key`. With a left window, boundaries are aligned to the first key visible at
// `position`, so that query groups a multiple of kLanes later overlap as few panels as possible.
SLAP_FAST_INLINE std::int64_t panel_start(const AttentionView& view, std::int64_t position, std::int64_t key) {
  const std::int64_t origin = view.left < kUnlimited ? position - view.left : 0;
  const std::int64_t ahead = (key - origin) % kLanes;
  return key - (ahead < 0 ? ahead + kLanes : ahead);
}

// head_dim padded to whole vectors.
SLAP_FAST_INLINE std::int64_t padded_width(const AttentionView& view) { return round_up(view.head_dim, kLanes); }

template <class In>
Source<In> source_of(const HeadsView& heads, std::int64_t head_dim, std::int64_t begin, std::int64_t length,
                     std::int64_t head) {
  const auto* data = static_cast<const typename In::Stored*>(heads.data);
  return {data + begin * heads.token_stride + head * heads.head_stride, heads.token_stride, head_dim, 0, length};
}

// The same rows of the next head.
template <class In>
Source<In> next_head(Source<In> source, const HeadsView& heads) {
  source.data += heads.head_stride;
  return source;
}

// Part `index` of a range split into `count` parts.
SLAP_FAST_INLINE Range range_part(Range range, std::int64_t index, std::int64_t count) {
  return {range.begin + range.size() * index / count, range.begin + range.size() * (index + 1) / count};
}

// Prefetches rows a few at a time, between matrix products: a core has only a few tens of outstanding cache-line fills,
// so prefetching all rows at once would stall it like plain loads.
template <class In>
class Prefetcher {
 public:
  void clear() { count_ = 0; }
  void add(const Source<In>& source, Range rows) {
    if (count_ < kCapacity && !rows.empty()) queue_[count_++] = {source, rows};
  }
  SLAP_FAST_INLINE void step() {
    for (int row = 0; row < kRowsPerStep && count_ > 0; ++row) {
      Entry& entry = queue_[count_ - 1];
      entry.source.prefetch(entry.rows.begin++);
      count_ -= entry.rows.empty();
    }
  }

 private:
  struct Entry {
    Source<In> source;
    Range rows;
  };
  static constexpr int kCapacity = 6, kRowsPerStep = 12;
  Entry queue_[kCapacity];
  int count_ = 0;
};

// Bump allocator with 64-byte alignment. With null `memory` it only counts bytes.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class T>
  T* take(std::int64_t count) {
    const std::int64_t begin = used_;
    used_ += round_up(count * static_cast<std::int64_t>(sizeof(T)), 64);
    return memory_ ? reinterpret_cast<T*>(memory_ + begin) : nullptr;
  }
  std::int64_t used() const { return used_; }

 private:
  char* memory_;
  std::int64_t used_ = 0;
};

// Lane i stands for key first + i: x if that key is in `range`, else `fallback`.
SLAP_FAST_INLINE Lanes select_inside(Lanes x, std::int64_t first, Range range, Lanes fallback) {
  IntLanes index;
  SLAP_FAST_UNROLL
  for (int i = 0; i < kLanes; ++i) index[i] = i;
  const int begin = static_cast<int>(range.begin - first), end = static_cast<int>(range.end - first);
  return select((index >= begin) & (index < end), x, fallback);
}

}  // namespace slap_fast::SLAP_FAST_ISA
