// Passes over a similarity tile in L2; compiled once per instruction set.
//
// Cost: about 30 instructions per 16 elements forward and 40 backward, with two exponentials each. The matrix products
// around them take 384 and 1,152 instructions at width 768 with AVX512-BF16, twice as many with AVX-512.
#include "contrastive_kernel.h"

#include "product_packing.h"
#include "score_lanes.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// Rows processed together, so that column statistics are loaded and stored once per kQuad rows.
constexpr int kQuad = 4;

// Columns per partial sum: blocked summation keeps float32 accurate.
constexpr std::int64_t kSegment = 256;

// Compile-time flag: true if a vector reaches beyond the tile's columns.
template <bool kValue>
struct IsTail {
  static constexpr bool value = kValue;
};

class Columns {
 public:
  explicit Columns(const SimilarityTile& tile) : tile_(tile), whole_(tile.columns / kLanes * kLanes) {
    SLAP_FAST_UNROLL
    for (int i = 0; i < kLanes; ++i) inside_[i] = i < tile.columns - whole_ ? -1 : 0;
  }

  // Calls visit(IsTail, column) for each vector of columns, and flush() after every kSegment columns and at the end.
  template <class Visit, class Flush>
  SLAP_FAST_INLINE void for_each(Visit visit, Flush flush) const {
    for (std::int64_t column = 0; column < whole_;) {
      const std::int64_t end = min(column + kSegment, whole_);
      for (; column < end; column += kLanes) visit(IsTail<false>{}, column);
      flush();
    }
    if (whole_ == tile_.columns) return;
    visit(IsTail<true>{}, whole_);
    flush();
  }
  template <class Visit>
  SLAP_FAST_INLINE void for_each(Visit visit) const {
    for_each(visit, [] {});
  }

  // x inside the tile, `fallback` beyond its last column.
  template <bool kTail>
  SLAP_FAST_INLINE Lanes keep(IsTail<kTail>, Lanes x, Lanes fallback) const {
    if constexpr (kTail) return select(inside_, x, fallback);
    return x;
  }

  template <class Tail>
  SLAP_FAST_INLINE Lanes similarity(Tail tail, std::int64_t row, std::int64_t column) const {
    return keep(tail, load(tile_.data + row * tile_.stride + column), Lanes{});
  }
  SLAP_FAST_INLINE Lanes logit(Lanes similarity) const {
    return fma(similarity, splat(tile_.scale), splat(tile_.bias));
  }
  SLAP_FAST_INLINE void put(std::int64_t row, std::int64_t column, Lanes x) const {
    store(tile_.data + row * tile_.stride + column, x);
  }

 private:
  const SimilarityTile& tile_;
  std::int64_t whole_;
  IntLanes inside_;
};

// Calls visit(RowCount, row) for groups of kQuad rows, then for the remaining rows one by one.
template <int kCount>
struct RowCount {
  static constexpr int value = kCount;
};
template <class Visit>
SLAP_FAST_INLINE void for_each_row_group(const SimilarityTile& tile, Visit visit) {
  std::int64_t row = 0;
  for (; row + kQuad <= tile.rows; row += kQuad) visit(RowCount<kQuad>{}, row);
  for (; row < tile.rows; ++row) visit(RowCount<1>{}, row);
}

// Blocked sum over columns.
struct Sum {
  Lanes segment{}, total{};
  SLAP_FAST_INLINE void flush() {
    total += segment;
    segment = Lanes{};
  }
};

float logit_of(const SimilarityTile& tile, float similarity) { return Columns(tile).logit(splat(similarity))[0]; }

void find_max(const SimilarityTile& tile, float* row_max, float* column_max) {
  const Columns columns(tile);
  for_each_row_group(tile, [&](auto count, std::int64_t row) SLAP_FAST_LAMBDA {
    constexpr int kCount = decltype(count)::value;
    Lanes highest[kCount];
    for (int r = 0; r < kCount; ++r) highest[r] = splat(-kInfinity);
    columns.for_each([&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      Lanes top = load(column_max + column);
      SLAP_FAST_UNROLL
      for (int r = 0; r < kCount; ++r) {
        const Lanes all = columns.logit(columns.similarity(tail, row + r, column));
        const Lanes logit = columns.keep(tail, all, splat(-kInfinity));
        highest[r] = max(logit, highest[r]);
        top = max(logit, top);
      }
      store(column_max + column, top);
    });
    for (int r = 0; r < kCount; ++r) row_max[row + r] = reduce_max(highest[r]);
  });
}

void sum_exponentials(const SimilarityTile& tile, const float* row_max, const float* column_max, float* row_sum,
                      float* column_sum) {
  const Columns columns(tile);
  for_each_row_group(tile, [&](auto count, std::int64_t row) SLAP_FAST_LAMBDA {
    constexpr int kCount = decltype(count)::value;
    Sum sums[kCount];
    Lanes base[kCount];
    for (int r = 0; r < kCount; ++r) base[r] = splat(row_max[row + r]);
    const auto flush = [&]() SLAP_FAST_LAMBDA {
      for (Sum& sum : sums) sum.flush();
    };
    const auto visit = [&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      const Lanes column_base = load(column_max + column);
      Lanes row_group_sum{};
      SLAP_FAST_UNROLL
      for (int r = 0; r < kCount; ++r) {
        const Lanes logit = columns.logit(columns.similarity(tail, row + r, column));
        sums[r].segment += columns.keep(tail, exponential(logit - base[r]), Lanes{});
        row_group_sum += exponential(logit - column_base);
      }
      store(column_sum + column, load(column_sum + column) + row_group_sum);
    };
    columns.for_each(visit, flush);
    for (int r = 0; r < kCount; ++r) row_sum[row + r] = reduce_sum(sums[r].total);
  });
}

// e^-|x|.
SLAP_FAST_INLINE Lanes decay(Lanes x) { return exponential(-max(x, -x)); }

void sum_pair_losses(const SimilarityTile& tile, float* row_max, float* column_max, float* row_loss) {
  const Columns columns(tile);
  find_max(tile, row_max, column_max);
  for (std::int64_t row = 0; row < tile.rows; ++row) {
    Sum sum;
    const auto visit = [&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      const Lanes logit = columns.logit(columns.similarity(tail, row, column));
      const Lanes loss = max(logit, Lanes{}) + logarithm_above_1(decay(logit));
      sum.segment += columns.keep(tail, loss, Lanes{});
    };
    columns.for_each(visit, [&]() SLAP_FAST_LAMBDA { sum.flush(); });
    row_loss[row] = reduce_sum(sum.total);
  }
}

void softmax_gradients(const SimilarityTile& tile, const SoftmaxGradients& rows, const SoftmaxGradients& along,
                       float* weighted, float* total) {
  const Columns columns(tile);
  for_each_row_group(tile, [&](auto count, std::int64_t row) SLAP_FAST_LAMBDA {
    constexpr int kCount = decltype(count)::value;
    Sum products[kCount], sums[kCount];
    const auto flush = [&]() SLAP_FAST_LAMBDA {
      for (int r = 0; r < kCount; ++r) {
        products[r].flush();
        sums[r].flush();
      }
    };
    const auto visit = [&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      const Lanes column_max = load(along.max + column), column_loss = load(along.loss + column);
      const Lanes column_grad = load(along.grad + column);
      SLAP_FAST_UNROLL
      for (int r = 0; r < kCount; ++r) {
        const Lanes similarity = columns.similarity(tail, row + r, column), logit = columns.logit(similarity);
        const Lanes by_row = logit - splat(rows.max[row + r]) - splat(rows.loss[row + r]);
        const Lanes by_column = logit - column_max - column_loss;
        Lanes grad = exponential(by_row) * splat(rows.grad[row + r]);
        grad = columns.keep(tail, fma(exponential(by_column), column_grad, grad), Lanes{});
        products[r].segment = fma(grad, similarity, products[r].segment);
        sums[r].segment += grad;
        columns.put(row + r, column, grad);
      }
    };
    columns.for_each(visit, flush);
    for (int r = 0; r < kCount; ++r) {
      weighted[row + r] = reduce_sum(products[r].total);
      total[row + r] = reduce_sum(sums[r].total);
    }
  });
}

void sigmoid_gradients(const SimilarityTile& tile, const float* row_grad, float* weighted, float* total) {
  const Columns columns(tile);
  for (std::int64_t row = 0; row < tile.rows; ++row) {
    Sum product, sum;
    const auto flush = [&]() SLAP_FAST_LAMBDA {
      product.flush();
      sum.flush();
    };
    const auto visit = [&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      const Lanes similarity = columns.similarity(tail, row, column), logit = columns.logit(similarity);
      const Lanes grad = columns.keep(tail, splat(row_grad[row]) * sigmoid(logit), Lanes{});
      product.segment = fma(grad, similarity, product.segment);
      sum.segment += grad;
      columns.put(row, column, grad);
    };
    columns.for_each(visit, flush);
    weighted[row] = reduce_sum(product.total);
    total[row] = reduce_sum(sum.total);
  }
}

void round_to_bfloat16(const SimilarityTile& tile, std::uint16_t* out, std::int64_t stride, float* row_residual,
                       float* column_residual) {
  const Columns columns(tile);
  for_each_row_group(tile, [&](auto count, std::int64_t row) SLAP_FAST_LAMBDA {
    constexpr int kCount = decltype(count)::value;
    Lanes residuals[kCount];
    for (int r = 0; r < kCount; ++r) residuals[r] = Lanes{};
    columns.for_each([&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      Lanes column_total = load(column_residual + column);
      SLAP_FAST_UNROLL
      for (int r = 0; r < kCount; ++r) {
        const Lanes value = columns.similarity(tail, row + r, column);
        std::uint16_t* target = out + (row + r) * stride + column;
        BFloat16::store(target, value);
        const Lanes residual = value - BFloat16::load(target);
        residuals[r] += residual;
        column_total += residual;
      }
      store(column_residual + column, column_total);
    });
    for (int r = 0; r < kCount; ++r) row_residual[row + r] += reduce_sum(residuals[r]);
  });
}

void merge_log_sum_exp(std::int64_t count, float* running_max, float* running_sum, const float* other_max,
                       const float* other_sum) {
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const Lanes old_max = load(running_max + i), new_max = load(other_max + i), merged = max(new_max, old_max);
    const Lanes base = select(merged == -kInfinity, Lanes{}, merged);
    store(running_sum + i,
          fma(load(running_sum + i), exponential(old_max - base), load(other_sum + i) * exponential(new_max - base)));
    store(running_max + i, merged);
  }
}

void add_row(DType dtype, const void* row, std::int64_t width, float factor, float* sum) {
  dispatch_dtype(dtype, [&](auto format) {
    using In = decltype(format);
    const auto* in = static_cast<const typename In::Stored*>(row);
    std::int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes)
      store_unaligned(sum + i, fma(In::load(in + i), splat(factor), load_unaligned(sum + i)));
    if (i == width) return;
    const Lanes residual =
        fma(load_partial<In>(in + i, width - i), splat(factor), load_partial<Float32>(sum + i, width - i));
    store_partial<Float32>(sum + i, residual, width - i);
  });
}

float dot(DType dtype, const void* row, const float* other, std::int64_t width) {
  Lanes sum{};
  dispatch_dtype(dtype, [&](auto format) {
    using In = decltype(format);
    const auto* in = static_cast<const typename In::Stored*>(row);
    std::int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) sum = fma(In::load(in + i), load_unaligned(other + i), sum);
    if (i < width) sum = fma(load_partial<In>(in + i, width - i), load_partial<Float32>(other + i, width - i), sum);
  });
  return reduce_sum(sum);
}

void write_row(DType dtype, const float* sum, std::int64_t width, float factor, void* out) {
  dispatch_dtype(dtype, [&](auto format) {
    using Out = decltype(format);
    auto* to = static_cast<typename Out::Stored*>(out);
    std::int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) Out::store(to + i, load_unaligned(sum + i) * splat(factor));
    if (i < width) store_partial<Out>(to + i, load_partial<Float32>(sum + i, width - i) * splat(factor), width - i);
  });
}

}  // namespace

const ContrastiveKernel contrastive_kernel{
    logit_of,          find_max,          sum_exponentials,  sum_pair_losses, softmax_gradients,
    sigmoid_gradients, round_to_bfloat16, merge_log_sum_exp, add_row,         dot,
    write_row};

}  // namespace slap_fast::SLAP_FAST_ISA
