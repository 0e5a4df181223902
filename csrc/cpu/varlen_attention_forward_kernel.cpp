// Attention forward with online softmax over groups of kGroup queries; compiled once per instruction set.
//
// Cost: 4 n D FLOP per query that sees n keys, plus the keys that only other queries of its group see. Local windows of
// 97 keys, D = 64, 12 heads, 3,036 tokens in clips of 1 to 30 seconds: 0.86 GFLOP, 0.96 in groups, hence 4 ms at 243
// GFLOP/s (two AVX-512 cores, float32) or 2.2 ms at 430 GFLOP/s (AVX512-BF16). Softmax and packing add about 13
// instructions per 16 scores.
#include "varlen_attention_common.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

constexpr std::int64_t kGroup = 32;  // queries per group
// Keys per score block: kGroup x kBlock floats take 16 KiB, half of a 32 KiB L1.
constexpr std::int64_t kBlock = 128, kScoreStride = kBlock + 16;

// Keys packed at once: 256 KiB each of packed keys and values in float32, together half of a 1 MiB L2.
std::int64_t packed_keys(std::int64_t padded) { return max(kBlock, 65536 / padded / kBlock * kBlock); }

template <class Operand>
struct Workspace {
  using Value = typename Operand::Value;
  Value *panels, *steps, *queries, *weights;
  float *scores, *sums, *maxima, *totals;
  std::int64_t bytes;

  // For segments of `rows` queries that see `keys` keys. If the keys need several parts, running sums are kept for all
  // rows.
  Workspace(const AttentionView& view, std::int64_t rows, std::int64_t keys, void* memory) {
    Arena arena(memory);
    const std::int64_t padded = padded_width(view), part = packed_keys(padded);
    const std::int64_t packed = min(part, round_up(keys, kLanes) + kLanes);
    const std::int64_t kept_rows = keys + kLanes > part ? round_up(rows, kGroup) : kGroup;
    panels = arena.take<Value>(packed * padded);
    steps = arena.take<Value>(packed * padded);
    queries = arena.take<Value>(kGroup * padded);
    weights = arena.take<Value>(kGroup * kScoreStride);
    scores = arena.take<float>(kGroup * kScoreStride);
    sums = arena.take<float>(kept_rows * padded);
    maxima = arena.take<float>(kept_rows);
    totals = arena.take<float>(kept_rows);
    bytes = arena.used();
  }
};

template <class In, class Operand>
class Forward {
 public:
  Forward(const AttentionView& view, const AttentionSegment& segment, std::int64_t head,
          const AttentionOutputs& outputs, void* scratch)
      : view_(view),
        segment_(segment),
        shift_(segment.keys - segment.queries),
        padded_(padded_width(view)),
        keys_(visible_keys(view, segment, segment.first, segment.last)),
        work_(view, segment.last - segment.first, keys_.size(), scratch),
        q_(source_of<In>(view.q, view.head_dim, segment.begin_q, segment.queries, head)),
        k_(source_of<In>(view.k, view.head_dim, segment.begin_k, segment.keys, head / (view.heads / view.kv_heads))),
        v_(source_of<In>(view.v, view.head_dim, segment.begin_k, segment.keys, head / (view.heads / view.kv_heads))),
        out_(static_cast<typename In::Stored*>(outputs.out) + (segment.begin_q * view.heads + head) * view.head_dim),
        lse_(outputs.lse + head * view.total_q + segment.begin_q) {}

  // With `has_next_head`, prefetches the first keys and queries of the next head.
  void run(bool has_next_head) {
    const std::int64_t start = panel_start(view_, segment_.first, keys_.begin), part = packed_keys(padded_);
    const bool whole = keys_.end - start <= part;
    std::int64_t begin = start;
    do {
      const Range keys{begin, min(begin + part, keys_.end)};
      filled_ = begin;
      for (std::int64_t first = segment_.first; first < segment_.last; first += kGroup) {
        const std::int64_t last = min(first + kGroup, segment_.last);
        fill(keys, intersect(visible_keys(view_, segment_, first, last), keys).end);
        plan_prefetch(first, keys, has_next_head && begin == start);
        process_group(first, last, keys, whole ? 0 : first - segment_.first);
      }
      begin += part;
    } while (begin < keys_.end);
  }

 private:
  using Value = typename Operand::Value;

  // Packs keys and values up to at least `end`. Packing is incremental, so that memory reads overlap with computation.
  void fill(Range keys, std::int64_t end) {
    if (filled_ >= end) return;
    const std::int64_t count = round_up(end - filled_, kLanes), place = (filled_ - keys.begin) * padded_;
    Packing<In, Operand>::panels(k_, filled_, count, padded_, work_.panels + place);
    Packing<In, Operand>::steps(v_, filled_, count, padded_, work_.steps + place);
    filled_ += count;
  }

  void plan_prefetch(std::int64_t first, Range keys, bool has_next_head) {
    prefetcher_.clear();
    const Range queries{first + kGroup - shift_, first + 2 * kGroup - shift_};
    if (first + kGroup < segment_.last) {
      const Range next_keys{filled_,
                            intersect(visible_keys(view_, segment_, first + kGroup, first + 2 * kGroup), keys).end};
      prefetcher_.add(v_, next_keys);
      prefetcher_.add(k_, next_keys);
      prefetcher_.add(q_, queries);
    }
    const std::int64_t stride = view_.heads * view_.head_dim;
    const Source<In> out{out_, stride, view_.head_dim, 0, segment_.queries};
    prefetcher_.add(out, {first - shift_, first - shift_ + kGroup});
    if (!has_next_head) return;
    const std::int64_t groups = round_up(segment_.last - segment_.first, kGroup) / kGroup;
    const std::int64_t group = (first - segment_.first) / kGroup;
    const Range head_start = intersect(visible_keys(view_, segment_, segment_.first, segment_.first + kGroup), keys);
    if (!head_start.empty()) {
      prefetcher_.add(next_head(v_, view_.v), range_part(head_start, group, groups));
      prefetcher_.add(next_head(k_, view_.k), range_part(head_start, group, groups));
    }
    if (group + 1 == groups)
      prefetcher_.add(next_head(q_, view_.q), {segment_.first - shift_, segment_.first - shift_ + kGroup});
  }

  // Queries at positions [first, last) against the packed keys; their running sums start at row `sums_row`.
  void process_group(std::int64_t first, std::int64_t last, Range packed, std::int64_t sums_row) {
    const Range all = visible_keys(view_, segment_, first, last);
    const Range keys = intersect(all, packed);
    float *maxima = work_.maxima + sums_row, *totals = work_.totals + sums_row, *sums = work_.sums + sums_row * padded_;
    bool first_block = all.begin >= packed.begin;
    if (first_block) {
      for (int i = 0; i < kGroup; i += kLanes) {
        store(maxima + i, splat(-kInfinity));
        store(totals + i, Lanes{});
      }
    }
    if (!keys.empty()) {
      Packing<In, Operand>::row_major(q_, first - shift_, kGroup, padded_, view_.scale < 0.0f ? -1.0f : 1.0f,
                                      work_.queries);
      std::int64_t begin = panel_start(view_, segment_.first, keys.begin);
      for (; begin < keys.end; begin += kBlock, first_block = false) {
        const Range block{begin, min(begin + kBlock, keys.end)};
        compute_scores(first, last, block, (begin - packed.begin) / kLanes);
        alignas(64) float factors[kGroup];
        softmax_weights(first, last, block, maxima, totals, factors);
        accumulate(first, last, block, begin - packed.begin, first_block ? nullptr : factors, sums);
      }
    }
    if (keys.end == all.end || all.empty()) finish(first, last, maxima, totals, sums);
  }

  // Panels in the outer loop: kMaxVectors panels stay in L1 for all rows of the group.
  void compute_scores(std::int64_t first, std::int64_t last, Range block, std::int64_t begin_panel) {
    const std::int64_t panel_size = padded_ * kLanes, panels = round_up(block.size(), kLanes) / kLanes;
    for (std::int64_t first_panel = 0; first_panel < panels; first_panel += kMaxVectors) {
      for (std::int64_t row = 0; row < last - first; row += kRows) {
        const Range keys = visible_in_block(block, first + row, min(first + row + kRows, last));
        const std::int64_t begin = max(first_panel, keys.begin / kLanes);
        const std::int64_t end = min(first_panel + kMaxVectors, round_up(keys.end, kLanes) / kLanes);
        multiply<Operand>(end - begin, {work_.queries + row * padded_, padded_, Operand::kDepth},
                          {work_.panels + (begin_panel + begin) * panel_size, panel_size, kLanes * Operand::kDepth},
                          padded_ / Operand::kDepth,
                          {work_.scores + row * kScoreStride + begin * kLanes, kScoreStride, false, nullptr});
        prefetcher_.step();
      }
    }
  }

  // Keys of the block visible to queries at positions [first, last), relative to the block's first key.
  Range visible_in_block(Range block, std::int64_t first, std::int64_t last) const {
    const Range keys = intersect(visible_keys(view_, segment_, first, last), block);
    if (keys.empty()) return {0, 0};
    return {keys.begin - block.begin, keys.end - block.begin};
  }

  // Online softmax: scores to weights relative to the running maximum; `factors` rescales the previous sums.
  void softmax_weights(std::int64_t first, std::int64_t last, Range block, float* maxima, float* totals,
                       float* factors) {
    const Lanes unit = splat(exponent_unit(view_.scale));
    const std::int64_t width = round_up(block.size(), kLanes);
    for (int begin = 0; begin < kGroup; begin += kLanes) {
      Range ranges[kLanes];
      Lanes rows[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const std::int64_t position = first + begin + i;
        ranges[i] = position < last ? visible_in_block(block, position, position + 1) : Range{0, 0};
        rows[i] = mask_and_max(begin + i, ranges[i]);
      }
      const Lanes highest = reduce_rows(rows, [](Lanes a, Lanes b) SLAP_FAST_LAMBDA { return max(a, b); });
      const Lanes old_max = load(maxima + begin), new_max = max(highest * unit, old_max);
      const Lanes base = select(new_max == -kInfinity, Lanes{}, new_max), factor = exponential2(old_max - base);
      store(maxima + begin, new_max);
      store(factors + begin, factor);
      alignas(64) float bases[kLanes];
      store(bases, base);
      for (int i = 0; i < kLanes; ++i) rows[i] = exponentiate(begin + i, ranges[i], width, unit, splat(bases[i]));
      const Lanes added = reduce_rows(rows, [](Lanes a, Lanes b) SLAP_FAST_LAMBDA { return a + b; });
      store(totals + begin, fma(load(totals + begin), factor, added));
    }
  }

  // Masks invisible keys with -infinity; returns the lanewise maximum of the row.
  SLAP_FAST_INLINE Lanes mask_and_max(int row, Range range) {
    if (range.empty()) return splat(-kInfinity);
    float* scores = work_.scores + row * kScoreStride;
    const std::int64_t begin = range.begin / kLanes * kLanes, tail = (range.end - 1) / kLanes * kLanes;
    store(scores + begin, select_inside(load(scores + begin), begin, range, splat(-kInfinity)));
    store(scores + tail, select_inside(load(scores + tail), tail, range, splat(-kInfinity)));
    Lanes highest = load(scores + begin);
    for (std::int64_t i = begin + kLanes; i <= tail; i += kLanes) highest = max(load(scores + i), highest);
    return highest;
  }

  // Returns the lanewise sum of the row's weights; weights of masked keys are zero.
  SLAP_FAST_INLINE Lanes exponentiate(int row, Range range, std::int64_t width, Lanes unit, Lanes base) {
    const float* scores = work_.scores + row * kScoreStride;
    Value* weights = work_.weights + row * kScoreStride;
    const std::int64_t begin = range.begin / kLanes * kLanes, end = round_up(range.end, kLanes);
    Lanes total{};
    std::int64_t i = 0;
    for (; i < begin; i += kLanes) Operand::store(weights + i, Lanes{});
    for (; i < end; i += kLanes) {
      const Lanes weight = exponential2(fms(load(scores + i), unit, base));
      total += weight;
      Operand::store(weights + i, weight);
    }
    for (; i < width; i += kLanes) Operand::store(weights + i, Lanes{});
    return total;
  }

  void accumulate(std::int64_t first, std::int64_t last, Range block, std::int64_t key, const float* factors,
                  float* sums) {
    for (std::int64_t vector = 0, count; vector < padded_ / kLanes; vector += count) {
      count = vectors_per_tile(padded_ / kLanes - vector);
      for (std::int64_t row = 0; row < last - first; row += kRows) {
        const Range keys = visible_in_block(block, first + row, min(first + row + kRows, last));
        const std::int64_t begin = keys.begin / Operand::kDepth * Operand::kDepth;
        multiply<Operand>(
            count, {work_.weights + row * kScoreStride + begin, kScoreStride, Operand::kDepth},
            {work_.steps + (key + begin) * padded_ + vector * kLanes * Operand::kDepth, kLanes * Operand::kDepth,
             padded_ * Operand::kDepth},
            (keys.end - begin + Operand::kDepth - 1) / Operand::kDepth,
            {sums + row * padded_ + vector * kLanes, padded_, factors != nullptr, factors ? factors + row : nullptr});
        prefetcher_.step();
      }
    }
  }

  void finish(std::int64_t first, std::int64_t last, const float* maxima, const float* totals, const float* sums) {
    alignas(64) float lse[kGroup];
    for (int i = 0; i < kGroup; i += kLanes) {
      const Lanes total = load(totals + i);
      store(lse + i, select(total == 0.0f, splat(-kInfinity), fma(load(maxima + i), splat(kLn2), logarithm(total))));
    }
    for (std::int64_t row = 0; row < last - first; ++row) {
      const std::int64_t query = first - shift_ + row;
      lse_[query] = lse[row];
      typename In::Stored* out = out_ + query * view_.heads * view_.head_dim;
      const bool no_keys = totals[row] == 0.0f;
      const Lanes factor = splat(no_keys ? 0.0f : 1.0f / totals[row]);
      for (std::int64_t column = 0; column < view_.head_dim; column += kLanes) {
        const Lanes x = no_keys ? Lanes{} : load(sums + row * padded_ + column) * factor;
        if (column + kLanes <= view_.head_dim)
          In::store(out + column, x);
        else
          store_partial<In>(out + column, x, view_.head_dim - column);
      }
    }
  }

  const AttentionView& view_;
  const AttentionSegment& segment_;
  std::int64_t shift_, padded_;
  Range keys_;
  Workspace<Operand> work_;
  Source<In> q_, k_, v_;
  typename In::Stored* out_;
  float* lse_;
  Prefetcher<In> prefetcher_;
  std::int64_t filled_ = 0;  // keys below this are packed
};

}  // namespace

std::int64_t attention_forward_bytes(const AttentionView& view, std::int64_t rows, std::int64_t keys) {
  return Workspace<BestOperand>(view, rows, keys, nullptr).bytes;
}

void attention_forward(const AttentionView& view, const AttentionSegment& segment, std::int64_t first_head,
                       std::int64_t last_head, const AttentionOutputs& outputs, void* scratch) {
  dispatch_dtype(view.dtype, [&](auto format) {
    for (std::int64_t head = first_head; head < last_head; ++head)
      Forward<decltype(format), BestOperand>(view, segment, head, outputs, scratch).run(head + 1 < last_head);
  });
}

}  // namespace slap_fast::SLAP_FAST_ISA
