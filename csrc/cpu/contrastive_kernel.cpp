// Compiled once for each instruction set: passes over a tile that lies in L2.
//
// Floor: 16 elements of a tile take some 30 instructions in the forward pass and 40 in the backward, two exponentials
// each; the products around them take 384 and 1,152 at a width of 768 with AVX-512-BF16, twice that with AVX-512.
#include "contrastive_kernel.h"

#include "product_packing.h"
#include "score_lanes.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// Rows of a tile that share what is read and written of a column.
constexpr int kQuad = 4;

// Columns whose values are summed before their sum is added to that of others: small values are not lost so in float32.
constexpr std::int64_t kSegment = 256;

// Whether a vector of columns reaches beyond the tile.
template <bool kValue>
struct Flag {
  static constexpr bool value = kValue;
};

class Columns {
 public:
  explicit Columns(const SimilarityTile& tile) : tile_(tile), whole_(tile.columns / kLanes * kLanes) {
    SLAP_FAST_UNROLL
    for (int i = 0; i < kLanes; ++i) inside_[i] = i < tile.columns - whole_ ? -1 : 0;
  }

  // Calls visit(flag, column) for each vector of columns, and flush() after each kSegment columns and at the end.
  template <class Visit, class Flush>
  SLAP_FAST_INLINE void each(Visit visit, Flush flush) const {
    for (std::int64_t column = 0; column < whole_;) {
      const std::int64_t end = least(column + kSegment, whole_);
      for (; column < end; column += kLanes) visit(Flag<false>{}, column);
      flush();
    }
    if (whole_ == tile_.columns) return;
    visit(Flag<true>{}, whole_);
    flush();
  }
  template <class Visit>
  SLAP_FAST_INLINE void each(Visit visit) const {
    each(visit, [] {});
  }

  // x, or `otherwise` beyond the tile.
  template <bool kTail>
  SLAP_FAST_INLINE Lanes keep(Flag<kTail>, Lanes x, Lanes otherwise) const {
    if constexpr (kTail) return select(inside_, x, otherwise);
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

// Calls visit(rows, row) for kQuad rows at a time and for the rest one by one.
template <int kCount>
struct RowCount {
  static constexpr int value = kCount;
};
template <class Visit>
SLAP_FAST_INLINE void each_rows(const SimilarityTile& tile, Visit visit) {
  std::int64_t row = 0;
  for (; row + kQuad <= tile.rows; row += kQuad) visit(RowCount<kQuad>{}, row);
  for (; row < tile.rows; ++row) visit(RowCount<1>{}, row);
}

// A sum over columns, in segments.
struct Sum {
  Lanes segment{}, total{};
  SLAP_FAST_INLINE void flush() {
    total += segment;
    segment = Lanes{};
  }
};

float logit_of(const SimilarityTile& tile, float similarity) { return Columns(tile).logit(splat(similarity))[0]; }

void find_largest(const SimilarityTile& tile, float* row_largest, float* column_largest) {
  const Columns columns(tile);
  each_rows(tile, [&](auto count, std::int64_t row) SLAP_FAST_LAMBDA {
    constexpr int kCount = decltype(count)::value;
    Lanes highest[kCount];
    for (int r = 0; r < kCount; ++r) highest[r] = splat(-kInfinity);
    columns.each([&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      Lanes top = load(column_largest + column);
      SLAP_FAST_UNROLL
      for (int r = 0; r < kCount; ++r) {
        const Lanes all = columns.logit(columns.similarity(tail, row + r, column));
        const Lanes logit = columns.keep(tail, all, splat(-kInfinity));
        highest[r] = at_least(logit, highest[r]);
        top = at_least(logit, top);
      }
      store(column_largest + column, top);
    });
    for (int r = 0; r < kCount; ++r) row_largest[row + r] = largest_of(highest[r]);
  });
}

void sum_exponentials(const SimilarityTile& tile, const float* row_largest, const float* column_largest, float* row_sum,
                      float* column_sum) {
  const Columns columns(tile);
  each_rows(tile, [&](auto count, std::int64_t row) SLAP_FAST_LAMBDA {
    constexpr int kCount = decltype(count)::value;
    Sum sums[kCount];
    Lanes base[kCount];
    for (int r = 0; r < kCount; ++r) base[r] = splat(row_largest[row + r]);
    const auto flush = [&]() SLAP_FAST_LAMBDA {
      for (Sum& sum : sums) sum.flush();
    };
    const auto visit = [&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      const Lanes column_base = load(column_largest + column);
      Lanes few{};
      SLAP_FAST_UNROLL
      for (int r = 0; r < kCount; ++r) {
        const Lanes logit = columns.logit(columns.similarity(tail, row + r, column));
        sums[r].segment += columns.keep(tail, exponential(logit - base[r]), Lanes{});
        few += exponential(logit - column_base);
      }
      store(column_sum + column, load(column_sum + column) + few);
    };
    columns.each(visit, flush);
    for (int r = 0; r < kCount; ++r) row_sum[row + r] = sum_of(sums[r].total);
  });
}

// e^-|x|.
SLAP_FAST_INLINE Lanes decay(Lanes x) { return exponential(-at_least(x, -x)); }

void sum_pair_losses(const SimilarityTile& tile, float* row_largest, float* column_largest, float* row_loss) {
  const Columns columns(tile);
  find_largest(tile, row_largest, column_largest);
  for (std::int64_t row = 0; row < tile.rows; ++row) {
    Sum sum;
    const auto visit = [&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      const Lanes logit = columns.logit(columns.similarity(tail, row, column));
      const Lanes loss = at_least(logit, Lanes{}) + logarithm_above_1(decay(logit));
      sum.segment += columns.keep(tail, loss, Lanes{});
    };
    columns.each(visit, [&]() SLAP_FAST_LAMBDA { sum.flush(); });
    row_loss[row] = sum_of(sum.total);
  }
}

void softmax_gradients(const SimilarityTile& tile, const SoftmaxGradients& rows, const SoftmaxGradients& along,
                       float* weighted, float* total) {
  const Columns columns(tile);
  each_rows(tile, [&](auto count, std::int64_t row) SLAP_FAST_LAMBDA {
    constexpr int kCount = decltype(count)::value;
    Sum products[kCount], sums[kCount];
    const auto flush = [&]() SLAP_FAST_LAMBDA {
      for (int r = 0; r < kCount; ++r) {
        products[r].flush();
        sums[r].flush();
      }
    };
    const auto visit = [&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      const Lanes largest = load(along.largest + column), loss = load(along.loss + column);
      const Lanes column_grad = load(along.grad + column);
      SLAP_FAST_UNROLL
      for (int r = 0; r < kCount; ++r) {
        const Lanes similarity = columns.similarity(tail, row + r, column), logit = columns.logit(similarity);
        const Lanes by_row = logit - splat(rows.largest[row + r]) - splat(rows.loss[row + r]);
        const Lanes by_column = logit - largest - loss;
        Lanes grad = exponential(by_row) * splat(rows.grad[row + r]);
        grad = columns.keep(tail, fma(exponential(by_column), column_grad, grad), Lanes{});
        products[r].segment = fma(grad, similarity, products[r].segment);
        sums[r].segment += grad;
        columns.put(row + r, column, grad);
      }
    };
    columns.each(visit, flush);
    for (int r = 0; r < kCount; ++r) {
      weighted[row + r] = sum_of(products[r].total);
      total[row + r] = sum_of(sums[r].total);
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
    columns.each(visit, flush);
    weighted[row] = sum_of(product.total);
    total[row] = sum_of(sum.total);
  }
}

void narrow(const SimilarityTile& tile, std::uint16_t* out, std::int64_t stride, float* row_rest, float* column_rest) {
  const Columns columns(tile);
  each_rows(tile, [&](auto count, std::int64_t row) SLAP_FAST_LAMBDA {
    constexpr int kCount = decltype(count)::value;
    Lanes rests[kCount];
    for (int r = 0; r < kCount; ++r) rests[r] = Lanes{};
    columns.each([&](auto tail, std::int64_t column) SLAP_FAST_LAMBDA {
      Lanes column_total = load(column_rest + column);
      SLAP_FAST_UNROLL
      for (int r = 0; r < kCount; ++r) {
        const Lanes value = columns.similarity(tail, row + r, column);
        std::uint16_t* place = out + (row + r) * stride + column;
        BFloat16::store(place, value);
        const Lanes rest = value - BFloat16::load(place);
        rests[r] += rest;
        column_total += rest;
      }
      store(column_rest + column, column_total);
    });
    for (int r = 0; r < kCount; ++r) row_rest[row + r] += sum_of(rests[r]);
  });
}

void join(std::int64_t count, float* largest, float* sum, const float* more_largest, const float* more_sum) {
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const Lanes old = load(largest + i), more = load(more_largest + i), both = at_least(more, old);
    const Lanes base = select(both == -kInfinity, Lanes{}, both);
    store(sum + i, fma(load(sum + i), exponential(old - base), load(more_sum + i) * exponential(more - base)));
    store(largest + i, both);
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
    const Lanes rest = fma(load_some<In>(in + i, width - i), splat(factor), load_some<Float32>(sum + i, width - i));
    store_some<Float32>(sum + i, rest, width - i);
  });
}

float dot(DType dtype, const void* row, const float* other, std::int64_t width) {
  Lanes sum{};
  dispatch_dtype(dtype, [&](auto format) {
    using In = decltype(format);
    const auto* in = static_cast<const typename In::Stored*>(row);
    std::int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) sum = fma(In::load(in + i), load_unaligned(other + i), sum);
    if (i < width) sum = fma(load_some<In>(in + i, width - i), load_some<Float32>(other + i, width - i), sum);
  });
  return sum_of(sum);
}

void write_row(DType dtype, const float* sum, std::int64_t width, float factor, void* out) {
  dispatch_dtype(dtype, [&](auto format) {
    using Out = decltype(format);
    auto* to = static_cast<typename Out::Stored*>(out);
    std::int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) Out::store(to + i, load_unaligned(sum + i) * splat(factor));
    if (i < width) store_some<Out>(to + i, load_some<Float32>(sum + i, width - i) * splat(factor), width - i);
  });
}

}  // namespace

const ContrastiveKernel contrastive_kernel{
    logit_of, find_largest, sum_exponentials, sum_pair_losses, softmax_gradients, sigmoid_gradients, narrow, join,
    add_row,  dot,          write_row};

}  // namespace slap_fast::SLAP_FAST_ISA
