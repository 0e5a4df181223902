#include "varlen_attention.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "aligned_array.h"
#include "isa.h"
#include "packed_offsets.h"
#include "parallel.h"

namespace slap_fast {
namespace {

// Queries of one clip and head that make a task: enough that packing the keys around them is a small part of the work.
constexpr std::int64_t kForwardRows = 512;
// Positions that make a task of the backward pass: all of a clip of up to 30 seconds at head_dim 64.
std::int64_t backward_rows(std::int64_t head_dim) {
  return std::clamp<std::int64_t>(49152 / head_dim / kStretchUnit * kStretchUnit, 4 * kStretchUnit, 1024);
}
// Below this many multiplications a thread costs more than it saves.
constexpr double kWorkPerThread = 4e6;
constexpr std::int64_t kTasksPerThread = 16;

AttentionKernel chosen_kernel(DType dtype) { SLAP_FAST_RETURN_SERVING_BF16(attention_kernel, dtype); }

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

AttentionView checked_view(const AttentionInputs& inputs, const AttentionBatch& batch) {
  check_offsets("cu_seqlens_q", batch.cu_seqlens_q, batch.clips, batch.total_q, "tokens", "q");
  check_offsets("cu_seqlens_k", batch.cu_seqlens_k, batch.clips, batch.total_k, "tokens", "k");
  require(
      inputs.head_dim >= 1 && inputs.head_dim <= kMostHeadDim,
      "head_dim is " + std::to_string(inputs.head_dim) + "; native code takes 1 to " + std::to_string(kMostHeadDim));
  require(inputs.kv_heads >= 1 && inputs.heads >= 0 && inputs.heads % inputs.kv_heads == 0,
          "heads are " + std::to_string(inputs.heads) + " and " + std::to_string(inputs.kv_heads) +
              "; query heads must be a multiple of key heads");
  require(inputs.left >= -1 && inputs.right >= -1, "window is (" + std::to_string(inputs.left) + ", " +
                                                       std::to_string(inputs.right) +
                                                       "); each side is a count of tokens, or -1 for unlimited");
  // A window as long as the longest clip can be is none, which also keeps sums of positions small.
  const auto side = [&](std::int64_t tokens) {
    return tokens < 0 || tokens > batch.total_q + batch.total_k ? kUnlimited : tokens;
  };
  return {inputs.dtype,       inputs.heads, inputs.kv_heads, inputs.head_dim, batch.total_q, side(inputs.left),
          side(inputs.right), inputs.scale, inputs.q,        inputs.k,        inputs.v};
}

struct Work {
  AttentionStretch stretch;
  double cost;
};

// Keys that the queries at positions first .. last see together.
std::int64_t keys_seen(const AttentionView& view, const AttentionStretch& stretch) {
  const std::int64_t begin = std::max<std::int64_t>(0, stretch.first - view.left);
  return std::max<std::int64_t>(0, std::min(stretch.keys, stretch.last + view.right) - begin);
}

// Clips cut into stretches of `rows` positions, from their first query or, with `all`, from the first of either.
// The longest come first, so that threads finish together.
std::vector<Work> stretches(const AttentionView& view, const AttentionBatch& batch, std::int64_t rows, bool all) {
  std::vector<Work> work;
  for (std::int64_t clip = 0; clip < batch.clips; ++clip) {
    const std::int64_t begin_q = batch.cu_seqlens_q[clip], queries = batch.cu_seqlens_q[clip + 1] - begin_q;
    const std::int64_t begin_k = batch.cu_seqlens_k[clip], keys = batch.cu_seqlens_k[clip + 1] - begin_k;
    const std::int64_t start = all ? std::min<std::int64_t>(0, keys - queries) : keys - queries;
    for (std::int64_t first = start; first < keys; first += rows) {
      const AttentionStretch stretch{begin_q, queries, begin_k, keys, first, std::min(first + rows, keys)};
      const std::int64_t seen = std::min(keys_seen(view, stretch), view.left + view.right + 1);
      // What comes on top of the products is about as much as some more keys.
      work.push_back({stretch, static_cast<double>(stretch.last - first) * static_cast<double>(seen + 16)});
    }
  }
  std::stable_sort(work.begin(), work.end(), [](const Work& a, const Work& b) { return a.cost > b.cost; });
  return work;
}

// Calls task(stretch, first_head, last_head, scratch) until each stretch has had each head, on as many threads as are
// worth it. Heads of a token lie side by side: a few of them go together where there are tasks enough without.
template <class Task>
void for_each(const std::vector<Work>& work, std::int64_t heads, double cost_unit, std::int64_t scratch_bytes,
              int threads, const Task& task) {
  double total = 0.0;
  for (const Work& item : work) total += item.cost * cost_unit * static_cast<double>(heads);
  const double most = static_cast<double>(std::max(threads, 1));
  const int useful = static_cast<int>(std::clamp(total / kWorkPerThread, 1.0, most));
  const std::int64_t count = static_cast<std::int64_t>(work.size());
  const std::int64_t together =
      std::clamp<std::int64_t>(count * heads / (useful * kTasksPerThread), 1, std::max<std::int64_t>(1, heads));
  const std::int64_t runs = (heads + together - 1) / together;
  std::vector<std::unique_ptr<AlignedArray<std::byte>>> scratch;
  for (int thread = 0; thread < useful; ++thread)
    scratch.push_back(std::make_unique<AlignedArray<std::byte>>(scratch_bytes));
  parallel_for(count * runs, useful, [&](std::int64_t i, int thread) {
    const std::int64_t first = i % runs * together;
    task(work[static_cast<std::size_t>(i / runs)].stretch, first, std::min(first + together, heads),
         scratch[static_cast<std::size_t>(thread)]->get());
  });
}

}  // namespace

void varlen_attention(const AttentionInputs& inputs, const AttentionBatch& batch, const AttentionOutputs& outputs,
                      int threads) {
  const AttentionView view = checked_view(inputs, batch);
  const AttentionKernel kernel = chosen_kernel(view.dtype);
  const std::vector<Work> work = stretches(view, batch, kForwardRows, false);
  std::int64_t rows = 0, keys = 0;
  for (const Work& item : work) {
    rows = std::max(rows, item.stretch.last - item.stretch.first);
    keys = std::max(keys, keys_seen(view, item.stretch));
  }
  for_each(work, view.heads, static_cast<double>(2 * view.head_dim), kernel.forward_bytes(view, rows, keys), threads,
           [&](const AttentionStretch& stretch, std::int64_t first_head, std::int64_t last_head, void* scratch) {
             kernel.forward(view, stretch, first_head, last_head, outputs, scratch);
           });
}

void varlen_attention_backward(const AttentionInputs& inputs, const AttentionBatch& batch,
                               const AttentionGradients& gradients, int threads) {
  const AttentionView view = checked_view(inputs, batch);
  const AttentionKernel kernel = chosen_kernel(view.dtype);
  const std::vector<Work> work = stretches(view, batch, backward_rows(view.head_dim), true);
  std::int64_t rows = 0, keys = 0;
  for (const Work& item : work) {
    rows = std::max(rows, item.stretch.last - item.stretch.first);
    keys = std::max(keys, item.stretch.keys);
  }
  const std::int64_t group = view.heads / view.kv_heads;
  for_each(work, view.kv_heads, static_cast<double>(5 * group * view.head_dim), kernel.backward_bytes(view, rows, keys),
           threads,
           [&](const AttentionStretch& stretch, std::int64_t first_head, std::int64_t last_head, void* scratch) {
             kernel.backward(view, stretch, first_head, last_head, gradients, scratch);
           });
}

}  // namespace slap_fast
