#include "varlen_attention.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "aligned_memory.h"
#include "isa.h"
#include "packed_offsets.h"
#include "parallel.h"

namespace slap_fast {
namespace {

// Queries of one clip and head that make a task: enough that packing the keys around them is a small part of the work.
constexpr std::int64_t kForwardRows = 512;
// Below this many multiplications a thread costs more than it saves.
constexpr double kWorkPerThread = 4e6;

AttentionKernel chosen_kernel(Element element) {
  const Isa isa = chosen_isa();
#if defined(SLAP_FAST_HAS_AVX512_BF16)
  if (isa >= Isa::avx512_bf16 && element == Element::bfloat16)
    return {avx512_bf16::attention_forward_bytes, avx512_bf16::attention_forward};
#endif
#if defined(SLAP_FAST_HAS_AVX512)
  if (isa >= Isa::avx512) return {avx512::attention_forward_bytes, avx512::attention_forward};
#endif
#if defined(SLAP_FAST_HAS_AVX2)
  if (isa >= Isa::avx2) return {avx2::attention_forward_bytes, avx2::attention_forward};
#endif
  (void)isa, (void)element;
  return {baseline::attention_forward_bytes, baseline::attention_forward};
}

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

AttentionView checked_view(const AttentionInputs& inputs, const AttentionBatch& batch) {
  check_offsets("cu_seqlens_q", batch.cu_seqlens_q, batch.clips, batch.total_q, "tokens", "q");
  check_offsets("cu_seqlens_k", batch.cu_seqlens_k, batch.clips, batch.total_k, "tokens", "k");
  require(inputs.head_dim >= 1 && inputs.head_dim <= kMostHeadDim,
          "head_dim is " + std::to_string(inputs.head_dim) + "; native code takes 1 to " + std::to_string(kMostHeadDim));
  require(inputs.kv_heads >= 1 && inputs.heads >= 0 && inputs.heads % inputs.kv_heads == 0,
          "heads are " + std::to_string(inputs.heads) + " and " + std::to_string(inputs.kv_heads) +
              "; query heads must be a multiple of key heads");
  require(inputs.left >= -1 && inputs.right >= -1,
          "window is (" + std::to_string(inputs.left) + ", " + std::to_string(inputs.right) +
              "); each side is a count of tokens, or -1 for unlimited");
  // A window as long as the longest clip can be is none, which also keeps sums of positions small.
  const auto side = [&](std::int64_t tokens) {
    return tokens < 0 || tokens > batch.total_q + batch.total_k ? kUnlimited : tokens;
  };
  return {inputs.element,     inputs.heads,        inputs.kv_heads, inputs.head_dim, batch.total_q,
          side(inputs.left),  side(inputs.right),  inputs.scale,    inputs.q,        inputs.k,
          inputs.v};
}

struct Work {
  AttentionStretch stretch;
  double cost;
};

// Keys that the queries at positions first .. last see together.
std::int64_t keys_seen(const AttentionView& view, std::int64_t keys, std::int64_t first, std::int64_t last) {
  const std::int64_t begin = std::max<std::int64_t>(0, first - view.left);
  return std::max<std::int64_t>(0, std::min(keys, last + view.right) - begin);
}

// The longest stretches first, so that threads finish together.
std::vector<Work> forward_work(const AttentionView& view, const AttentionBatch& batch) {
  std::vector<Work> work;
  for (std::int64_t clip = 0; clip < batch.clips; ++clip) {
    const std::int64_t begin_q = batch.cu_seqlens_q[clip], queries = batch.cu_seqlens_q[clip + 1] - begin_q;
    const std::int64_t begin_k = batch.cu_seqlens_k[clip], keys = batch.cu_seqlens_k[clip + 1] - begin_k;
    for (std::int64_t first = keys - queries; first < keys; first += kForwardRows) {
      const std::int64_t last = std::min(first + kForwardRows, keys);
      const double seen = static_cast<double>(std::min(keys_seen(view, keys, first, last), view.left + view.right + 1));
      work.push_back({{begin_q, queries, begin_k, keys, first, last}, static_cast<double>(last - first) * (seen + 16)});
    }
  }
  std::stable_sort(work.begin(), work.end(), [](const Work& a, const Work& b) { return a.cost > b.cost; });
  return work;
}

}  // namespace

void varlen_attention(const AttentionInputs& inputs, const AttentionBatch& batch, const AttentionOutputs& outputs,
                      int threads) {
  const AttentionView view = checked_view(inputs, batch);
  const AttentionKernel kernel = chosen_kernel(view.element);
  const std::vector<Work> work = forward_work(view, batch);

  double total = 0.0;
  std::int64_t rows = 0, keys = 0;
  for (const Work& item : work) {
    const AttentionStretch& stretch = item.stretch;
    total += item.cost * static_cast<double>(2 * view.heads * view.head_dim);
    rows = std::max(rows, stretch.last - stretch.first);
    keys = std::max(keys, keys_seen(view, stretch.keys, stretch.first, stretch.last));
  }
  const int useful = static_cast<int>(std::clamp(total / kWorkPerThread, 1.0, static_cast<double>(std::max(threads, 1))));
  std::vector<std::unique_ptr<AlignedMemory>> scratch;
  for (int thread = 0; thread < useful; ++thread)
    scratch.push_back(std::make_unique<AlignedMemory>(kernel.forward_bytes(view, rows, keys)));
  parallel_for(static_cast<std::int64_t>(work.size()) * view.heads, useful, [&](std::int64_t task, int thread) {
    kernel.forward(view, work[static_cast<std::size_t>(task / view.heads)].stretch, task % view.heads, outputs,
                   scratch[static_cast<std::size_t>(thread)]->get());
  });
}

}  // namespace slap_fast
