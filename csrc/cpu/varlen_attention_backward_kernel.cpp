// Attention backward with weights recomputed from the log-sum-exp; compiled once per instruction set.
//
// A segment owns queries and keys. Its own query groups process all keys they see, for the gradients of the queries and
// of the owned keys. Queries of other segments that see owned keys are recomputed for the gradients of these keys. So
// no sum crosses tasks: results are deterministic without atomics or buffers, at the price of recomputing one window
// width per segment.
//
// Cost: five products instead of the forward's two. 3,036 tokens in local windows: 2.2 GFLOP, 2.5 in groups, hence 10
// ms at 243 GFLOP/s (two AVX-512 cores, float32) or 6 ms at 430 GFLOP/s (AVX512-BF16).
#include "varlen_attention_common.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

constexpr std::int64_t kGroup = kSegmentUnit;
constexpr std::int64_t kBlock = 128, kStride = kBlock + 16;

std::int64_t packed_keys(std::int64_t padded) { return max(kBlock, 65536 / padded / kBlock * kBlock); }

Range owned_keys(const AttentionSegment& segment) {
  const std::int64_t begin = max(segment.first, 0);
  return {begin, max(begin, min(segment.last, segment.keys))};
}

Range owned_queries(const AttentionSegment& segment) {
  const std::int64_t begin = max(segment.first, segment.keys - segment.queries);
  return {begin, max(begin, min(segment.last, segment.keys))};
}

Range bounding_range(Range a, Range b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {min(a.begin, b.begin), max(a.end, b.end)};
}

template <class Operand>
struct Workspace {
  using Value = typename Operand::Value;
  // Operands of products over head_dim: panels of keys and values, rows of the group's queries and output gradients.
  Value *key_panels, *value_panels, *queries, *grads;
  // Operands of products over keys, and over the group's queries.
  Value *key_steps, *query_steps, *grad_steps;
  float *scores, *grad_weights;
  // Softmax weights and score gradients as left operands of products over queries or keys.
  Value *weights_by_query, *grad_scores_by_query, *grad_scores_by_key;
  float *sums_q, *sums_k, *sums_v;
  std::int64_t bytes;

  // If the keys need several parts, query gradients are kept for all rows of the segment.
  Workspace(const AttentionView& view, std::int64_t rows, std::int64_t keys, void* memory) {
    Arena arena(memory);
    const std::int64_t padded = padded_width(view), part = packed_keys(padded);
    const std::int64_t packed = min(part, round_up(keys, kLanes) + kLanes);
    const std::int64_t kept_rows =
        keys + kLanes > part ? round_up(rows, kGroup) * (view.heads / view.kv_heads) : kGroup;
    const auto separate_buffer = [&](Value* shared, std::int64_t count) {
      return Operand::kDepth > 1 ? arena.take<Value>(count) : shared;
    };
    const auto operand_buffer = [&](float* values) {
      if constexpr (Operand::kDepth > 1)
        return arena.take<Value>(kGroup * kStride);
      else
        return values;
    };
    key_panels = arena.take<Value>(packed * padded);
    value_panels = arena.take<Value>(packed * padded);
    key_steps = arena.take<Value>(packed * padded);
    queries = arena.take<Value>(kGroup * padded);
    grads = arena.take<Value>(kGroup * padded);
    query_steps = separate_buffer(queries, kGroup * padded);
    grad_steps = separate_buffer(grads, kGroup * padded);
    scores = arena.take<float>(kGroup * kStride);
    grad_weights = arena.take<float>(kGroup * kStride);
    weights_by_query = operand_buffer(scores);
    grad_scores_by_query = operand_buffer(grad_weights);
    grad_scores_by_key = separate_buffer(grad_scores_by_query, kGroup * kStride);
    sums_q = arena.take<float>(kept_rows * padded);
    sums_k = arena.take<float>(packed * padded);
    sums_v = arena.take<float>(packed * padded);
    bytes = arena.used();
  }
};

template <class In, class Operand>
class Backward {
 public:
  Backward(const AttentionView& view, const AttentionSegment& segment, std::int64_t kv_head,
           const AttentionGradients& gradients, void* scratch)
      : view_(view),
        segment_(segment),
        gradients_(gradients),
        kv_head_(kv_head),
        shift_(segment.keys - segment.queries),
        padded_(padded_width(view)),
        owned_keys_(owned_keys(segment)),
        owned_queries_(owned_queries(segment)),
        keys_(bounding_range(owned_keys_, keys_of_owned_queries())),
        work_(view, segment.last - segment.first, keys_.size(), scratch),
        k_(source_of<In>(view.k, view.head_dim, segment.begin_k, segment.keys, kv_head)),
        v_(source_of<In>(view.v, view.head_dim, segment.begin_k, segment.keys, kv_head)) {}

  // With `has_next_head`, prefetches the keys and values of the next key head.
  void run(bool has_next_head) {
    const std::int64_t start = panel_start(view_, segment_.first, keys_.begin), part = packed_keys(padded_);
    const std::int64_t group = view_.heads / view_.kv_heads;
    const Range queries = bounding_range(owned_queries_, queries_seeing_owned_keys());
    const std::int64_t rows_before = max(0, segment_.first - queries.begin + kGroup - 1) / kGroup * kGroup;
    const bool whole = keys_.end - start <= part;
    std::int64_t begin = start;
    do {
      packed_ = {begin, max(begin, min(begin + part, keys_.end))};
      const std::int64_t count = round_up(packed_.size(), kLanes);
      Packing<In, Operand>::panels(k_, begin, count, padded_, work_.key_panels);
      Packing<In, Operand>::panels(v_, begin, count, padded_, work_.value_panels);
      Packing<In, Operand>::steps(k_, begin, count, padded_, work_.key_steps);
      zero(work_.sums_k, count * padded_);
      zero(work_.sums_v, count * padded_);
      for (std::int64_t i = 0; i < group; ++i) {
        const std::int64_t head = kv_head_ * group + i;
        for (std::int64_t first = segment_.first - rows_before; first < queries.end; first += kGroup) {
          plan_prefetch(head, first, first + kGroup < queries.end, has_next_head && begin == start && i + 1 == group);
          const std::int64_t rows = round_up(segment_.last - segment_.first, kGroup);
          const std::int64_t sums_row = whole ? 0 : i * rows + first - segment_.first;
          process_group(head, first, sums_row, begin == start, begin + part >= keys_.end);
        }
      }
      write_keys(gradients_.grad_k, work_.sums_k, view_.scale < 0.0f ? -view_.scale : view_.scale);
      write_keys(gradients_.grad_v, work_.sums_v, 1.0f);
      begin += part;
    } while (begin < keys_.end);
  }

 private:
  using Value = typename Operand::Value;
  using Stored = typename In::Stored;

  static void zero(float* values, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kLanes) store(values + i, Lanes{});
  }

  Range keys_of_owned_queries() const {
    if (owned_queries_.empty()) return {0, 0};
    return visible_keys(view_, segment_, owned_queries_.begin, owned_queries_.end);
  }

  // Queries that see at least one of `keys`.
  Range queries_seeing(Range keys) const {
    const std::int64_t begin = max(shift_, keys.begin - view_.right);
    return {begin, max(begin, min(segment_.keys, keys.end + view_.left))};
  }
  Range queries_seeing_owned_keys() const { return owned_keys_.empty() ? Range{0, 0} : queries_seeing(owned_keys_); }

  // Prefetches the inputs of the next group and a part of the next key head's keys.
  void plan_prefetch(std::int64_t head, std::int64_t first, bool has_next_group, bool has_next_head) {
    prefetcher_.clear();
    const bool owned = first >= segment_.first && first < segment_.last;
    if (has_next_head && owned) {
      const std::int64_t groups = round_up(segment_.last - segment_.first, kGroup) / kGroup;
      const Range keys = range_part(packed_, (first - segment_.first) / kGroup, groups);
      prefetcher_.add(next_head(k_, view_.k), keys);
      prefetcher_.add(next_head(v_, view_.v), keys);
    }
    if (!has_next_group) return;
    const Range queries{first + kGroup - shift_, first + 2 * kGroup - shift_};
    prefetcher_.add(query_source(gradients_.out, head), queries);
    prefetcher_.add(query_source(gradients_.grad_out, head), queries);
    prefetcher_.add(query_source(view_.q, head), queries);
  }

  Source<In> query_source(const HeadsView& heads, std::int64_t head) const {
    return source_of<In>(heads, view_.head_dim, segment_.begin_q, segment_.queries, head);
  }

  // Queries at positions [first, first + kGroup), clipped to the clip.
  void process_group(std::int64_t head, std::int64_t first, std::int64_t sums_row, bool first_part, bool last_part) {
    const bool owned = first >= segment_.first && first < segment_.last;
    const std::int64_t begin_row = max(first, shift_), end_row = min(first + kGroup, segment_.keys);
    if (begin_row >= end_row) return;
    rows_ = {begin_row - first, end_row - first};
    float* sums = work_.sums_q + sums_row * padded_;
    if (owned && first_part) zero(sums, kGroup * padded_);
    Range keys = intersect(visible_keys(view_, segment_, begin_row, end_row), packed_);
    if (!owned) keys = intersect(keys, owned_keys_);
    if (!keys.empty()) {
      pack_group(head, first);
      for (std::int64_t begin = panel_start(view_, segment_.first, keys.begin); begin < keys.end; begin += kBlock) {
        const Range block{begin, min(begin + kBlock, keys.end)};
        process_block(first, block);
        if (owned) add_to_queries(first, block, sums);
        const Range block_keys = intersect(block, owned_keys_);
        if (block_keys.empty()) continue;
        add_to_keys(first, block, block_keys, work_.weights_by_query, work_.grad_steps, work_.sums_v);
        add_to_keys(first, block, block_keys, work_.grad_scores_by_query, work_.query_steps, work_.sums_k);
      }
    }
    if (owned && last_part) write_queries(head, first, sums);
  }

  // Packs queries and output gradients; computes delta and the log-sum-exp in base 2 of each row.
  void pack_group(std::int64_t head, std::int64_t first) {
    const Source<In> grad = query_source(gradients_.grad_out, head), out = query_source(gradients_.out, head);
    const std::int64_t query = first - shift_;
    Packing<In, Operand>::row_major(query_source(view_.q, head), query, kGroup, padded_,
                                    view_.scale < 0.0f ? -1.0f : 1.0f, work_.queries);
    Packing<In, Operand>::row_major(grad, query, kGroup, padded_, 1.0f, work_.grads);
    if constexpr (Operand::kDepth > 1) {
      const auto packed = [&](const Value* rows) { return Source<In>{rows, padded_, padded_, 0, kGroup}; };
      Packing<In, Operand>::steps(packed(work_.queries), 0, kGroup, padded_, work_.query_steps);
      Packing<In, Operand>::steps(packed(work_.grads), 0, kGroup, padded_, work_.grad_steps);
    }
    const std::int64_t begin = head * view_.total_q + segment_.begin_q + query;
    for (std::int64_t block = 0; block < kGroup; block += kLanes) {
      Lanes products[kLanes] = {};
      for (std::int64_t row = max(block, rows_.begin); row < min(block + kLanes, rows_.end); ++row)
        for (std::int64_t column = 0; column < padded_; column += kLanes)
          products[row - block] =
              fma(grad.load(query + row, column), out.load(query + row, column), products[row - block]);
      store(deltas_ + block, reduce_rows(products, [](Lanes a, Lanes b) SLAP_FAST_LAMBDA { return a + b; }));
    }
    for (std::int64_t row = rows_.begin; row < rows_.end; ++row) {
      deltas_[row] -= gradients_.grad_lse[begin + row];
      const float lse = gradients_.lse[begin + row];
      bases_[row] = lse == -kInfinity ? 0.0f : lse * kLog2E;
    }
  }

  // Keys of the block visible to rows [begin, end) of the group, relative to the block's first key.
  Range visible_in_block(Range block, std::int64_t first, std::int64_t begin, std::int64_t end) const {
    const Range rows = intersect({begin, end}, rows_);
    if (rows.empty()) return {0, 0};
    const Range keys = intersect(visible_keys(view_, segment_, first + rows.begin, first + rows.end), block);
    if (keys.empty()) return {0, 0};
    return {keys.begin - block.begin, keys.end - block.begin};
  }

  // Softmax weights and score gradients; both zero at masked keys.
  void process_block(std::int64_t first, Range block) {
    const std::int64_t panel_size = padded_ * kLanes, width = round_up(block.size(), kLanes);
    const std::int64_t begin_panel = (block.begin - packed_.begin) / kLanes;
    for (std::int64_t row = 0; row < kGroup; row += kRows) {
      const Range keys = visible_in_block(block, first, row, row + kRows);
      const std::int64_t begin = keys.begin / kLanes, end = round_up(keys.end, kLanes) / kLanes;
      const auto product = [&](const Value* rows, const Value* panels, float* results) {
        for (std::int64_t panel = begin, count; panel < end; panel += count) {
          count = vectors_per_tile(end - panel);
          multiply<Operand>(count, {rows + row * padded_, padded_, Operand::kDepth},
                            {panels + (begin_panel + panel) * panel_size, panel_size, kLanes * Operand::kDepth},
                            padded_ / Operand::kDepth,
                            {results + row * kStride + panel * kLanes, kStride, false, nullptr});
          prefetcher_.step();
        }
      };
      product(work_.queries, work_.key_panels, work_.scores);
      product(work_.grads, work_.value_panels, work_.grad_weights);
    }
    const Lanes unit = splat(exponent_unit(view_.scale));
    for (std::int64_t row = 0; row < kGroup; row += Operand::kDepth) {
      Range ranges[Operand::kDepth];
      for (int i = 0; i < Operand::kDepth; ++i) ranges[i] = visible_in_block(block, first, row + i, row + i + 1);
      for (std::int64_t key = 0; key < width; key += kLanes) {
        Lanes weights[Operand::kDepth], grads[Operand::kDepth];
        for (int i = 0; i < Operand::kDepth; ++i) differentiate(row + i, key, ranges[i], unit, weights[i], grads[i]);
        const std::int64_t place = row * kStride + key * Operand::kDepth;
        Operand::store_step(work_.weights_by_query + place, weights);
        Operand::store_step(work_.grad_scores_by_query + place, grads);
        if constexpr (Operand::kDepth > 1)
          for (int i = 0; i < Operand::kDepth; ++i)
            Operand::store(work_.grad_scores_by_key + (row + i) * kStride + key, grads[i]);
      }
    }
  }

  // weight = exp(score - lse), grad = weight * (grad_weight - delta), with delta = dot(grad_out, out) - grad_lse.
  SLAP_FAST_INLINE void differentiate(std::int64_t row, std::int64_t key, Range range, Lanes unit, Lanes& weight,
                                      Lanes& grad) const {
    if (key + kLanes <= range.begin || key >= range.end) {
      weight = grad = Lanes{};
      return;
    }
    const std::int64_t place = row * kStride + key;
    weight = exponential2(fms(load(work_.scores + place), unit, splat(bases_[row])));
    grad = weight * (load(work_.grad_weights + place) - splat(deltas_[row]));
    if (key >= range.begin && key + kLanes <= range.end) return;
    weight = select_inside(weight, key, range, Lanes{});
    grad = select_inside(grad, key, range, Lanes{});
  }

  void add_to_queries(std::int64_t first, Range block, float* sums) {
    const std::int64_t key = block.begin - packed_.begin;
    for (std::int64_t vector = 0, count; vector < padded_ / kLanes; vector += count) {
      count = vectors_per_tile(padded_ / kLanes - vector);
      for (std::int64_t row = 0; row < kGroup; row += kRows) {
        const Range keys = visible_in_block(block, first, row, row + kRows);
        if (keys.empty()) continue;
        const std::int64_t begin = keys.begin / Operand::kDepth * Operand::kDepth;
        multiply<Operand>(count, {work_.grad_scores_by_key + row * kStride + begin, kStride, Operand::kDepth},
                          {work_.key_steps + (key + begin) * padded_ + vector * kLanes * Operand::kDepth,
                           kLanes * Operand::kDepth, padded_ * Operand::kDepth},
                          (keys.end - begin + Operand::kDepth - 1) / Operand::kDepth,
                          {sums + row * padded_ + vector * kLanes, padded_, true, nullptr});
        prefetcher_.step();
      }
    }
  }

  // sums[key] += sum over the group's queries of factors[query, key] * steps[query], for `keys`, a part of `block`.
  void add_to_keys(std::int64_t first, Range block, Range keys, const Value* factors, const Value* steps, float* sums) {
    const std::int64_t begin_key = (keys.begin - block.begin) / kRows * kRows;
    for (std::int64_t vector = 0, count; vector < padded_ / kLanes; vector += count) {
      count = vectors_per_tile(padded_ / kLanes - vector);
      for (std::int64_t key = begin_key; key < keys.end - block.begin; key += kRows) {
        const Range queries = queries_seeing({block.begin + key, block.begin + key + kRows});
        const Range rows = intersect({queries.begin - first, queries.end - first}, rows_);
        if (rows.empty()) continue;
        const std::int64_t begin = rows.begin / Operand::kDepth * Operand::kDepth;
        multiply<Operand>(
            count, {factors + begin * kStride + key * Operand::kDepth, Operand::kDepth, kStride * Operand::kDepth},
            {steps + begin * padded_ + vector * kLanes * Operand::kDepth, kLanes * Operand::kDepth,
             padded_ * Operand::kDepth},
            (rows.end - begin + Operand::kDepth - 1) / Operand::kDepth,
            {sums + (block.begin - packed_.begin + key) * padded_ + vector * kLanes, padded_, true, nullptr});
      }
    }
  }

  void write_row(Stored* out, const float* sums, float factor) const {
    for (std::int64_t column = 0; column < view_.head_dim; column += kLanes) {
      const Lanes x = load(sums + column) * splat(factor);
      if (column + kLanes <= view_.head_dim)
        In::store(out + column, x);
      else
        store_partial<In>(out + column, x, view_.head_dim - column);
    }
  }

  void write_queries(std::int64_t head, std::int64_t first, const float* sums) const {
    auto* out = static_cast<Stored*>(gradients_.grad_q);
    for (std::int64_t row = rows_.begin; row < rows_.end; ++row) {
      const std::int64_t token = segment_.begin_q + first - shift_ + row;
      write_row(out + (token * view_.heads + head) * view_.head_dim, sums + row * padded_, view_.scale);
    }
  }

  // Writes the gradients of the packed keys that the segment owns.
  void write_keys(void* grads, const float* sums, float factor) const {
    const Range keys = intersect(packed_, owned_keys_);
    for (std::int64_t key = keys.begin; key < keys.end; ++key)
      write_row(static_cast<Stored*>(grads) + ((segment_.begin_k + key) * view_.kv_heads + kv_head_) * view_.head_dim,
                sums + (key - packed_.begin) * padded_, factor);
  }

  const AttentionView& view_;
  const AttentionSegment& segment_;
  const AttentionGradients& gradients_;
  std::int64_t kv_head_, shift_, padded_;
  Range owned_keys_, owned_queries_, keys_;
  Workspace<Operand> work_;
  Source<In> k_, v_;
  Prefetcher<In> prefetcher_;
  Range packed_{0, 0}, rows_{0, 0};
  alignas(64) float deltas_[kGroup], bases_[kGroup];
};

}  // namespace

std::int64_t attention_backward_bytes(const AttentionView& view, std::int64_t rows, std::int64_t keys) {
  return Workspace<BestOperand>(view, rows, keys, nullptr).bytes;
}

void attention_backward(const AttentionView& view, const AttentionSegment& segment, std::int64_t first_kv_head,
                        std::int64_t last_kv_head, const AttentionGradients& gradients, void* scratch) {
  dispatch_dtype(view.dtype, [&](auto format) {
    for (std::int64_t kv_head = first_kv_head; kv_head < last_kv_head; ++kv_head)
      Backward<decltype(format), BestOperand>(view, segment, kv_head, gradients, scratch)
          .run(kv_head + 1 < last_kv_head);
  });
}

}  // namespace slap_fast::SLAP_FAST_ISA
