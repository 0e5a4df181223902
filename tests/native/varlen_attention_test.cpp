// Attention on random clips: values and gradients against float64 loops, out-of-bounds accesses, and bitwise
// independence of threads and other clips.
#include "cpu/varlen_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "native_tests.h"
#include "testing.h"

namespace testing {
namespace {

using namespace slap_fast;

struct Shape {
  std::int64_t heads, kv_heads, head_dim, left, right;
  float scale;
  std::vector<std::int64_t> lengths_q, lengths_k;
};

std::vector<std::int32_t> offsets(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int32_t> cu_seqlens{0};
  for (std::int64_t length : lengths) cu_seqlens.push_back(cu_seqlens.back() + static_cast<std::int32_t>(length));
  return cu_seqlens;
}

// [tokens, heads, width] with gaps between heads and tokens, exactly sized.
struct StridedHeads {
  std::int64_t tokens, heads, width, token_stride, head_stride;
  ExactArray<float> values;

  StridedHeads(Random& random, std::int64_t tokens, std::int64_t heads, std::int64_t width, std::int64_t head_gap,
               std::int64_t token_gap)
      : tokens(tokens),
        heads(heads),
        width(width),
        token_stride(heads * (width + head_gap) + token_gap),
        head_stride(width + head_gap),
        values(tokens && heads ? (tokens - 1) * token_stride + (heads - 1) * head_stride + width : 0,
               random.between(0, 15)) {
    for (std::int64_t i = 0; i < values.size(); ++i) values[i] = random.uniform(-2.0f, 2.0f);
  }
  float& at(std::int64_t token, std::int64_t head, std::int64_t i) const {
    return values[token * token_stride + head * head_stride + i];
  }
  HeadsView view() const { return {values.data(), token_stride, head_stride}; }
};

struct Results {
  ExactArray<float> out, lse, grad_q, grad_k, grad_v;
};

bool same(const Results& a, const Results& b) {
  return same_bits(a.out.data(), b.out.data(), a.out.size()) && same_bits(a.lse.data(), b.lse.data(), a.lse.size()) &&
         same_bits(a.grad_q.data(), b.grad_q.data(), a.grad_q.size()) &&
         same_bits(a.grad_k.data(), b.grad_k.data(), a.grad_k.size()) &&
         same_bits(a.grad_v.data(), b.grad_v.data(), a.grad_v.size());
}

struct Problem {
  Shape shape;
  std::vector<std::int32_t> cu_q, cu_k;
  std::int64_t total_q, total_k;
  StridedHeads q, k, v, grad;
  ExactArray<float> grad_lse;

  Problem(Random& random, const Shape& shape)
      : shape(shape),
        cu_q(offsets(shape.lengths_q)),
        cu_k(offsets(shape.lengths_k)),
        total_q(cu_q.back()),
        total_k(cu_k.back()),
        q(random, total_q, shape.heads, shape.head_dim, random.between(0, 3), random.between(0, 5)),
        k(random, total_k, shape.kv_heads, shape.head_dim, random.between(0, 3), random.between(0, 5)),
        v(random, total_k, shape.kv_heads, shape.head_dim, random.between(0, 3), random.between(0, 5)),
        grad(random, total_q, shape.heads, shape.head_dim, random.between(0, 3), random.between(0, 5)),
        grad_lse(shape.heads * total_q, 1) {
    for (std::int64_t i = 0; i < grad_lse.size(); ++i) grad_lse[i] = random.uniform(-1.0f, 1.0f);
  }

  AttentionInputs inputs() const {
    return {DType::float32, shape.heads, shape.kv_heads, shape.head_dim, shape.left,
            shape.right,    shape.scale, q.view(),       k.view(),       v.view()};
  }
  AttentionBatch batch() const {
    return {cu_q.data(), cu_k.data(), static_cast<std::int64_t>(shape.lengths_q.size()), total_q, total_k};
  }

  Results run(int threads) const {
    const std::int64_t queries = total_q * shape.heads * shape.head_dim;
    const std::int64_t keys = total_k * shape.kv_heads * shape.head_dim;
    Results results{poisoned(queries, 1), poisoned(shape.heads * total_q, 3), poisoned(queries, 5), poisoned(keys, 7),
                    poisoned(keys, 9)};
    varlen_attention(inputs(), batch(), {results.out.data(), results.lse.data()}, threads);
    varlen_attention_backward(inputs(), batch(),
                              {grad.view(),
                               {results.out.data(), shape.heads * shape.head_dim, shape.head_dim},
                               results.lse.data(),
                               grad_lse.data(),
                               results.grad_q.data(),
                               results.grad_k.data(),
                               results.grad_v.data()},
                              threads);
    return results;
  }
};

void require_close(const char* what, const ExactArray<float>& actual, const std::vector<double>& expected) {
  double largest = 1.0;
  for (double x : expected) largest = std::max(largest, std::isfinite(x) ? std::abs(x) : 0.0);
  for (std::int64_t i = 0; i < actual.size(); ++i) {
    const double value = expected[static_cast<std::size_t>(i)];
    const bool close =
        std::isfinite(value) ? std::abs(actual[i] - value) <= 3e-5 * largest : static_cast<double>(actual[i]) == value;
    if (!is_poison(actual[i]) && close) continue;  // a message for each value would take longer than the kernels
    require(false, std::string(what) + " is " + std::to_string(actual[i]) + ", not " + std::to_string(value));
  }
}

void check_against_loops(const Problem& problem, const Results& results) {
  const Shape& shape = problem.shape;
  const std::int64_t heads = shape.heads, kv_heads = shape.kv_heads, width = shape.head_dim;
  const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  std::vector<double> out(size(problem.total_q * heads * width)), grad_q(out.size());
  std::vector<double> lse(size(heads * problem.total_q));
  std::vector<double> grad_k(size(problem.total_k * kv_heads * width)), grad_v(grad_k.size());
  for (std::size_t clip = 0; clip < shape.lengths_q.size(); ++clip) {
    const std::int64_t queries = shape.lengths_q[clip], keys = shape.lengths_k[clip];
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t kv_head = head / (heads / kv_heads);
      for (std::int64_t i = 0; i < queries; ++i) {
        const std::int64_t query = problem.cu_q[clip] + i, position = i + keys - queries;
        const std::int64_t begin = shape.left < 0 ? 0 : std::max<std::int64_t>(0, position - shape.left);
        const std::int64_t end = shape.right < 0 ? keys : std::min(keys, position + shape.right + 1);
        const auto row = [&](std::int64_t e) { return size((query * heads + head) * width + e); };
        const auto column = [&](std::int64_t j, std::int64_t e) {
          return size(((problem.cu_k[clip] + j) * kv_heads + kv_head) * width + e);
        };
        std::vector<double> scores, weights;
        double total = 0.0;
        for (std::int64_t j = begin; j < end; ++j) {
          double score = 0.0;
          for (std::int64_t e = 0; e < width; ++e)
            score +=
                static_cast<double>(problem.q.at(query, head, e)) * problem.k.at(problem.cu_k[clip] + j, kv_head, e);
          scores.push_back(score * shape.scale);
        }
        const double highest = scores.empty() ? 0.0 : *std::max_element(scores.begin(), scores.end());
        for (double score : scores) total += std::exp(score - highest);
        lse[size(head * problem.total_q + query)] =
            scores.empty() ? -std::numeric_limits<double>::infinity() : highest + std::log(total);
        for (double score : scores) weights.push_back(std::exp(score - highest) / total);
        double delta = -static_cast<double>(problem.grad_lse[head * problem.total_q + query]);
        for (std::int64_t e = 0; e < width; ++e) {
          for (std::int64_t j = begin; j < end; ++j)
            out[row(e)] += weights[size(j - begin)] * problem.v.at(problem.cu_k[clip] + j, kv_head, e);
          delta += out[row(e)] * problem.grad.at(query, head, e);
        }
        for (std::int64_t j = begin; j < end; ++j) {
          double product = 0.0;
          for (std::int64_t e = 0; e < width; ++e) {
            product +=
                static_cast<double>(problem.grad.at(query, head, e)) * problem.v.at(problem.cu_k[clip] + j, kv_head, e);
            grad_v[column(j, e)] += weights[size(j - begin)] * problem.grad.at(query, head, e);
          }
          const double grad_score = weights[size(j - begin)] * (product - delta) * shape.scale;
          for (std::int64_t e = 0; e < width; ++e) {
            grad_q[row(e)] += grad_score * problem.k.at(problem.cu_k[clip] + j, kv_head, e);
            grad_k[column(j, e)] += grad_score * problem.q.at(query, head, e);
          }
        }
      }
    }
  }
  require_close("output", results.out, out);
  require_close("lse", results.lse, lse);
  require_close("gradient of queries", results.grad_q, grad_q);
  require_close("gradient of keys", results.grad_k, grad_k);
  require_close("gradient of values", results.grad_v, grad_v);
}

Shape random_shape(Random& random, bool long_clip) {
  Shape shape;
  shape.kv_heads = random.between(1, 2);
  shape.heads = shape.kv_heads * random.between(1, 3);
  shape.head_dim = random.of(std::vector<std::int64_t>{1, 3, 4, 15, 16, 17, 64, 100, 256});
  shape.left = random.of(std::vector<std::int64_t>{-1, 0, 1, 5, 47, 48, 600});
  shape.right = random.of(std::vector<std::int64_t>{-1, 0, 1, 5, 48, 600, std::int64_t{1} << 62});
  shape.scale = random.of(std::vector<float>{0.1f, 0.3f, -0.2f, 0.0f});
  if (long_clip) {
    shape.head_dim = 256;
    shape.heads = shape.kv_heads = 1;
    shape.lengths_q = {random.between(190, 420)};
    shape.lengths_k = {random.between(1, 420)};
    return shape;
  }
  const std::vector<std::int64_t> edges{0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 65, 127, 129};
  for (std::int64_t clips = random.between(0, 4); clips > 0; --clips) {
    shape.lengths_q.push_back(random.of(edges));
    shape.lengths_k.push_back(random.once_in(2) ? shape.lengths_q.back() : random.of(edges));
  }
  return shape;
}

// NaN and infinity in other clips do not change a clip's bits.
void check_isolation(Random& random) {
  const Shape shape{2, 1, 24, 20, 20, 0.2f, {5, 40, 33}, {5, 40, 33}};
  const Problem problem(random, shape);
  const Results before = problem.run(1);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const StridedHeads* heads_array : {&problem.q, &problem.k, &problem.v, &problem.grad})
      for (std::int64_t token : {0, 4, 45, 77})
        for (std::int64_t head = 0; head < heads_array->heads; ++head)
          for (std::int64_t i = 0; i < heads_array->width; ++i) heads_array->at(token, head, i) = bad;
    const Results after = problem.run(3);
    const std::int64_t queries = 2 * 24, keys = 24;
    require(same_bits(before.out.data() + 5 * queries, after.out.data() + 5 * queries, 40 * queries), "output leaks");
    require(same_bits(before.grad_q.data() + 5 * queries, after.grad_q.data() + 5 * queries, 40 * queries), "dQ leaks");
    require(same_bits(before.grad_k.data() + 5 * keys, after.grad_k.data() + 5 * keys, 40 * keys), "dK leaks");
    require(same_bits(before.grad_v.data() + 5 * keys, after.grad_v.data() + 5 * keys, 40 * keys), "dV leaks");
  }
}

// 16-bit dtypes: out-of-bounds accesses only; values are compared with PyTorch in tests/ops.
void check_16bit(Random& random, DType dtype) {
  const Shape shape = random_shape(random, false);
  const std::vector<std::int32_t> cu_q = offsets(shape.lengths_q), cu_k = offsets(shape.lengths_k);
  const auto filled = [&](std::int64_t tokens, std::int64_t heads) {
    ExactArray<std::uint16_t> values(tokens * heads * shape.head_dim, random.between(0, 31));
    for (std::int64_t i = 0; i < values.size(); ++i)  // finite in either type
      values[i] = static_cast<std::uint16_t>(random.between(0, 1) << 15 | random.between(0x3000, 0x3fff));
    return values;
  };
  const auto q = filled(cu_q.back(), shape.heads), grad = filled(cu_q.back(), shape.heads);
  const auto k = filled(cu_k.back(), shape.kv_heads), v = filled(cu_k.back(), shape.kv_heads);
  const auto out = filled(cu_q.back(), shape.heads), grad_q = filled(cu_q.back(), shape.heads);
  const auto grad_k = filled(cu_k.back(), shape.kv_heads), grad_v = filled(cu_k.back(), shape.kv_heads);
  const ExactArray<float> lse = poisoned(shape.heads * cu_q.back(), 0), grad_lse(shape.heads * cu_q.back(), 0);
  for (std::int64_t i = 0; i < grad_lse.size(); ++i) grad_lse[i] = 0.0f;
  const auto view = [&](const ExactArray<std::uint16_t>& x, std::int64_t heads) {
    return HeadsView{x.data(), heads * shape.head_dim, shape.head_dim};
  };
  const AttentionInputs inputs{
      dtype,       shape.heads, shape.kv_heads,       shape.head_dim,          shape.left,
      shape.right, shape.scale, view(q, shape.heads), view(k, shape.kv_heads), view(v, shape.kv_heads)};
  const AttentionBatch batch{cu_q.data(), cu_k.data(), static_cast<std::int64_t>(shape.lengths_q.size()), cu_q.back(),
                             cu_k.back()};
  varlen_attention(inputs, batch, {out.data(), lse.data()}, 2);
  varlen_attention_backward(inputs, batch,
                            {view(grad, shape.heads), view(out, shape.heads), lse.data(), grad_lse.data(),
                             grad_q.data(), grad_k.data(), grad_v.data()},
                            2);
  for (std::int64_t i = 0; i < lse.size(); ++i) require(!is_poison(lse[i]), "an lse is not written");
}

void check_malformed() {
  const std::vector<std::int32_t> good{0, 1, 2};
  const AttentionInputs inputs{DType::float32, 2, 1, 16, -1, -1, 1.0f, {}, {}, {}};
  const auto rejected = [&](const std::string& what, const AttentionInputs& bad, const std::vector<std::int32_t>& cu) {
    const AttentionBatch batch{cu.data(), good.data(), 2, 2, 2};
    require_rejected(what, [&] { varlen_attention(bad, batch, {nullptr, nullptr}, 1); });
    require_rejected(what, [&] { varlen_attention_backward(bad, batch, {}, 1); });
  };
  for (const std::vector<std::int32_t>& cu : {std::vector<std::int32_t>{1, 1, 2}, {0, 3, 2}, {0, -1, 2}, {0, 1, 3}})
    rejected("offsets", inputs, cu);
  const auto changed = [&](auto change) {
    AttentionInputs bad = inputs;
    change(bad);
    return bad;
  };
  rejected("head_dim 0", changed([](AttentionInputs& x) { x.head_dim = 0; }), good);
  rejected("head_dim 257", changed([](AttentionInputs& x) { x.head_dim = 257; }), good);
  rejected("3 heads for 2", changed([](AttentionInputs& x) { x.heads = 3, x.kv_heads = 2; }), good);
  rejected("no key heads", changed([](AttentionInputs& x) { x.kv_heads = 0; }), good);
  rejected("window", changed([](AttentionInputs& x) { x.left = -2; }), good);
}

}  // namespace

void test_varlen_attention() {
  for (Isa isa : isas_of_this_machine()) {
    force_isa(isa_name(isa));
    Random random(7);
    for (int trial = 0; trial < 40; ++trial) {
      const Problem problem(random, random_shape(random, trial % 20 == 19));
      const Results results = problem.run(1);
      check_against_loops(problem, results);
      for (int threads : {-1, 0, 3, 64}) require(same(problem.run(threads), results), "bits depend on threads");
      check_16bit(random, trial % 2 ? DType::bfloat16 : DType::float16);
    }
    check_isolation(random);
    check_malformed();
  }
}

}  // namespace testing
