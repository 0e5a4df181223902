// Compiled once for each instruction set: gradients of attention, with weights recomputed from the log-sum-exp.
//
// A stretch owns queries and keys. Groups of its own queries visit all keys that they see, and give the queries'
// gradient and their part of the owned keys'; queries of other stretches that see owned keys are visited once more for
// the keys' sake. So nothing is summed across tasks: no order to keep, no memory to hold, and the work done twice is a
// window's width for each stretch.
//
// Floor: five products where the forward pass has two. 3,036 tokens in local windows: 2.2 GFLOP, in groups 2.5, hence
// 10 ms of 243 GFLOP/s (two cores of AVX-512, float32) or 6 ms of 430 (AVX-512-BF16).
#include "attention_stretch.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

constexpr std::int64_t kGroup = kStretchUnit;
constexpr std::int64_t kBlock = 128, kStride = kBlock + 16;

std::int64_t packed_keys(std::int64_t padded) { return most(kBlock, 65536 / padded / kBlock * kBlock); }

Range owned_keys(const AttentionStretch& stretch) {
  const std::int64_t begin = most(stretch.first, 0);
  return {begin, most(begin, least(stretch.last, stretch.keys))};
}

Range owned_queries(const AttentionStretch& stretch) {
  const std::int64_t begin = most(stretch.first, stretch.keys - stretch.queries);
  return {begin, most(begin, least(stretch.last, stretch.keys))};
}

Range around(Range a, Range b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {least(a.begin, b.begin), most(a.end, b.end)};
}

template <class Operand>
struct Workspace {
  using Value = typename Operand::Value;
  // Operands of products over head_dim: of keys and values in panels, of a group's queries and gradients in rows.
  Value *key_panels, *value_panels, *queries, *grads;
  // Operands of products over keys, and over a group's queries.
  Value *key_steps, *query_steps, *grad_steps;
  float *scores, *grad_weights;
  // What becomes of them: as a left operand over queries, and over keys.
  Value *weights_by_query, *grad_scores_by_query, *grad_scores_by_key;
  float *sums_q, *sums_k, *sums_v;
  std::int64_t bytes;

  // The sums of all of a stretch's queries are kept where keys come in parts.
  Workspace(const AttentionView& view, std::int64_t rows, std::int64_t keys, void* memory) {
    Arena arena(memory);
    const std::int64_t padded = padded_width(view), part = packed_keys(padded);
    const std::int64_t packed = least(part, round_up(keys, kLanes) + kLanes);
    const std::int64_t kept = keys + kLanes > part ? round_up(rows, kGroup) * (view.heads / view.kv_heads) : kGroup;
    const auto apart = [&](Value* shared, std::int64_t count) {
      return Operand::kDepth > 1 ? arena.take<Value>(count) : shared;
    };
    const auto in_place = [&](float* values) {
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
    query_steps = apart(queries, kGroup * padded);
    grad_steps = apart(grads, kGroup * padded);
    scores = arena.take<float>(kGroup * kStride);
    grad_weights = arena.take<float>(kGroup * kStride);
    weights_by_query = in_place(scores);
    grad_scores_by_query = in_place(grad_weights);
    grad_scores_by_key = apart(grad_scores_by_query, kGroup * kStride);
    sums_q = arena.take<float>(kept * padded);
    sums_k = arena.take<float>(packed * padded);
    sums_v = arena.take<float>(packed * padded);
    bytes = arena.used();
  }
};

template <class In, class Operand>
class Backward {
 public:
  Backward(const AttentionView& view, const AttentionStretch& stretch, std::int64_t kv_head,
           const AttentionGradients& gradients, void* scratch)
      : view_(view),
        stretch_(stretch),
        gradients_(gradients),
        kv_head_(kv_head),
        shift_(stretch.keys - stretch.queries),
        padded_(padded_width(view)),
        owned_keys_(owned_keys(stretch)),
        owned_queries_(owned_queries(stretch)),
        keys_(around(owned_keys_, seen_by_owned())),
        work_(view, stretch.last - stretch.first, keys_.size(), scratch),
        k_(source_of<In>(view.k, view.head_dim, stretch.begin_k, stretch.keys, kv_head)),
        v_(source_of<In>(view.v, view.head_dim, stretch.begin_k, stretch.keys, kv_head)) {}

  // With `followed`, the same scratch will serve the next key head: what that reads is fetched along the way.
  void run(bool followed) {
    const std::int64_t start = panel_start(view_, stretch_.first, keys_.begin), part = packed_keys(padded_);
    const std::int64_t group = view_.heads / view_.kv_heads;
    const Range queries = around(owned_queries_, that_see_owned());
    const std::int64_t before = most(0, stretch_.first - queries.begin + kGroup - 1) / kGroup * kGroup;
    const bool whole = keys_.end - start <= part;
    std::int64_t begin = start;
    do {
      packed_ = {begin, most(begin, least(begin + part, keys_.end))};
      const std::int64_t count = round_up(packed_.size(), kLanes);
      Packing<In, Operand>::panels(k_, begin, count, padded_, work_.key_panels);
      Packing<In, Operand>::panels(v_, begin, count, padded_, work_.value_panels);
      Packing<In, Operand>::steps(k_, begin, count, padded_, work_.key_steps);
      zero(work_.sums_k, count * padded_);
      zero(work_.sums_v, count * padded_);
      for (std::int64_t i = 0; i < group; ++i) {
        const std::int64_t head = kv_head_ * group + i;
        for (std::int64_t first = stretch_.first - before; first < queries.end; first += kGroup) {
          plan_prefetch(head, first, first + kGroup < queries.end, followed && begin == start && i + 1 == group);
          const std::int64_t rows = round_up(stretch_.last - stretch_.first, kGroup);
          const std::int64_t kept = whole ? 0 : i * rows + first - stretch_.first;
          visit_group(head, first, kept, begin == start, begin + part >= keys_.end);
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

  Range seen_by_owned() const {
    if (owned_queries_.empty()) return {0, 0};
    return seen(view_, stretch_, owned_queries_.begin, owned_queries_.end);
  }

  // Queries that see a key of begin .. end.
  Range that_see(Range keys) const {
    const std::int64_t begin = most(shift_, keys.begin - view_.right);
    return {begin, most(begin, least(stretch_.keys, keys.end + view_.left))};
  }
  Range that_see_owned() const { return owned_keys_.empty() ? Range{0, 0} : that_see(owned_keys_); }

  // What the group behind this one reads, and a part of the next key head's keys.
  void plan_prefetch(std::int64_t head, std::int64_t first, bool more, bool followed) {
    prefetcher_.clear();
    const bool owned = first >= stretch_.first && first < stretch_.last;
    if (followed && owned) {
      const std::int64_t groups = round_up(stretch_.last - stretch_.first, kGroup) / kGroup;
      const Range keys = part_of(packed_, (first - stretch_.first) / kGroup, groups);
      prefetcher_.add(next_head(k_, view_.k), keys);
      prefetcher_.add(next_head(v_, view_.v), keys);
    }
    if (!more) return;
    const Range queries{first + kGroup - shift_, first + 2 * kGroup - shift_};
    prefetcher_.add(query_source(gradients_.out, head), queries);
    prefetcher_.add(query_source(gradients_.grad_out, head), queries);
    prefetcher_.add(query_source(view_.q, head), queries);
  }

  Source<In> query_source(const HeadsView& heads, std::int64_t head) const {
    return source_of<In>(heads, view_.head_dim, stretch_.begin_q, stretch_.queries, head);
  }

  // The queries at first .. first + kGroup, as far as there are such.
  void visit_group(std::int64_t head, std::int64_t first, std::int64_t kept, bool first_part, bool last_part) {
    const bool owned = first >= stretch_.first && first < stretch_.last;
    const std::int64_t begin_row = most(first, shift_), end_row = least(first + kGroup, stretch_.keys);
    if (begin_row >= end_row) return;
    rows_ = {begin_row - first, end_row - first};
    float* sums = work_.sums_q + kept * padded_;
    if (owned && first_part) zero(sums, kGroup * padded_);
    Range keys = common(seen(view_, stretch_, begin_row, end_row), packed_);
    if (!owned) keys = common(keys, owned_keys_);
    if (!keys.empty()) {
      pack_group(head, first);
      for (std::int64_t begin = panel_start(view_, stretch_.first, keys.begin); begin < keys.end; begin += kBlock) {
        const Range block{begin, least(begin + kBlock, keys.end)};
        visit_block(first, block);
        if (owned) add_to_queries(first, block, sums);
        const Range mine = common(block, owned_keys_);
        if (mine.empty()) continue;
        add_to_keys(first, block, mine, work_.weights_by_query, work_.grad_steps, work_.sums_v);
        add_to_keys(first, block, mine, work_.grad_scores_by_query, work_.query_steps, work_.sums_k);
      }
    }
    if (owned && last_part) write_queries(head, first, sums);
  }

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
    const std::int64_t begin = head * view_.total_q + stretch_.begin_q + query;
    for (std::int64_t block = 0; block < kGroup; block += kLanes) {
      Lanes products[kLanes] = {};
      for (std::int64_t row = most(block, rows_.begin); row < least(block + kLanes, rows_.end); ++row)
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

  // The block's keys that the group's rows begin .. end see, counted from the block's first.
  Range seen_in(Range block, std::int64_t first, std::int64_t begin, std::int64_t end) const {
    const Range rows = common({begin, end}, rows_);
    if (rows.empty()) return {0, 0};
    const Range keys = common(seen(view_, stretch_, first + rows.begin, first + rows.end), block);
    if (keys.empty()) return {0, 0};
    return {keys.begin - block.begin, keys.end - block.begin};
  }

  // Weights and gradients of scores, both zero where a query does not see a key.
  void visit_block(std::int64_t first, Range block) {
    const std::int64_t panel_size = padded_ * kLanes, width = round_up(block.size(), kLanes);
    const std::int64_t begin_panel = (block.begin - packed_.begin) / kLanes;
    for (std::int64_t row = 0; row < kGroup; row += kRows) {
      const Range keys = seen_in(block, first, row, row + kRows);
      const std::int64_t begin = keys.begin / kLanes, end = round_up(keys.end, kLanes) / kLanes;
      const auto product = [&](const Value* rows, const Value* panels, float* results) {
        for (std::int64_t panel = begin, some; panel < end; panel += some) {
          some = some_vectors(end - panel);
          multiply<Operand>(some, {rows + row * padded_, padded_, Operand::kDepth},
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
      for (int i = 0; i < Operand::kDepth; ++i) ranges[i] = seen_in(block, first, row + i, row + i + 1);
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
    weight = keep_inside(weight, key, range, Lanes{});
    grad = keep_inside(grad, key, range, Lanes{});
  }

  void add_to_queries(std::int64_t first, Range block, float* sums) {
    const std::int64_t key = block.begin - packed_.begin;
    for (std::int64_t vector = 0, some; vector < padded_ / kLanes; vector += some) {
      some = some_vectors(padded_ / kLanes - vector);
      for (std::int64_t row = 0; row < kGroup; row += kRows) {
        const Range keys = seen_in(block, first, row, row + kRows);
        if (keys.empty()) continue;
        const std::int64_t begin = keys.begin / Operand::kDepth * Operand::kDepth;
        multiply<Operand>(some, {work_.grad_scores_by_key + row * kStride + begin, kStride, Operand::kDepth},
                          {work_.key_steps + (key + begin) * padded_ + vector * kLanes * Operand::kDepth,
                           kLanes * Operand::kDepth, padded_ * Operand::kDepth},
                          (keys.end - begin + Operand::kDepth - 1) / Operand::kDepth,
                          {sums + row * padded_ + vector * kLanes, padded_, true, nullptr});
        prefetcher_.step();
      }
    }
  }

  // For the keys of `mine`: the sum over the group's queries of `factors` times `steps`.
  void add_to_keys(std::int64_t first, Range block, Range mine, const Value* factors, const Value* steps, float* sums) {
    const std::int64_t begin_key = (mine.begin - block.begin) / kRows * kRows;
    for (std::int64_t vector = 0, some; vector < padded_ / kLanes; vector += some) {
      some = some_vectors(padded_ / kLanes - vector);
      for (std::int64_t key = begin_key; key < mine.end - block.begin; key += kRows) {
        const Range queries = that_see({block.begin + key, block.begin + key + kRows});
        const Range rows = common({queries.begin - first, queries.end - first}, rows_);
        if (rows.empty()) continue;
        const std::int64_t begin = rows.begin / Operand::kDepth * Operand::kDepth;
        multiply<Operand>(
            some, {factors + begin * kStride + key * Operand::kDepth, Operand::kDepth, kStride * Operand::kDepth},
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
        store_some<In>(out + column, x, view_.head_dim - column);
    }
  }

  void write_queries(std::int64_t head, std::int64_t first, const float* sums) const {
    auto* out = static_cast<Stored*>(gradients_.grad_q);
    for (std::int64_t row = rows_.begin; row < rows_.end; ++row) {
      const std::int64_t token = stretch_.begin_q + first - shift_ + row;
      write_row(out + (token * view_.heads + head) * view_.head_dim, sums + row * padded_, view_.scale);
    }
  }

  // Those of the packed keys that the stretch owns.
  void write_keys(void* grads, const float* sums, float factor) const {
    const Range keys = common(packed_, owned_keys_);
    for (std::int64_t key = keys.begin; key < keys.end; ++key)
      write_row(static_cast<Stored*>(grads) + ((stretch_.begin_k + key) * view_.kv_heads + kv_head_) * view_.head_dim,
                sums + (key - packed_.begin) * padded_, factor);
  }

  const AttentionView& view_;
  const AttentionStretch& stretch_;
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

void attention_backward(const AttentionView& view, const AttentionStretch& stretch, std::int64_t first_kv_head,
                        std::int64_t last_kv_head, const AttentionGradients& gradients, void* scratch) {
  dispatch_dtype(view.dtype, [&](auto format) {
    for (std::int64_t kv_head = first_kv_head; kv_head < last_kv_head; ++kv_head)
      Backward<decltype(format), BestOperand>(view, stretch, kv_head, gradients, scratch)
          .run(kv_head + 1 < last_kv_head);
  });
}

}  // namespace slap_fast::SLAP_FAST_ISA
