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

// Queries per forward task: enough to amortize packing the keys of the surrounding window.
constexpr std::int64_t kForwardRows = 512;
// Positions per backward task. At head_dim 64 this covers a clip of up to 30 seconds.
std::int64_t backward_rows(std::int64_t head_dim) {
  return std::clamp<std::int64_t>(49152 / head_dim / kSegmentUnit * kSegmentUnit, 4 * kSegmentUnit, 1024);
}
// Multiplications that justify one more thread.
constexpr double kWorkPerThread = 4e6;
constexpr std::int64_t kTasksPerThread = 16;

AttentionKernel chosen_kernel(DType dtype) { SLAP_FAST_DISPATCH_BF16(attention_kernel, dtype); }

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

AttentionView checked_view(const AttentionInputs& inputs, const AttentionBatch& batch) {
  check_offsets("cu_seqlens_q", batch.cu_seqlens_q, batch.clips, batch.total_q, "tokens", "q");
  check_offsets("cu_seqlens_k", batch.cu_seqlens_k, batch.clips, batch.total_k, "tokens", "k");
  require(inputs.head_dim >= 1 && inputs.head_dim <= kMaxHeadDim,
          "head_dim is " + std::to_string(inputs.head_dim) + "; native code takes 1 to " + std::to_string(kMaxHeadDim));
  require(inputs.kv_heads >= 1 && inputs.heads >= 0 && inputs.heads % inputs.kv_heads == 0,
          "heads are " + std::to_string(inputs.heads) + " and " + std::to_string(inputs.kv_heads) +
              "; query heads must be a multiple of key heads");
  require(inputs.left >= -1 && inputs.right >= -1, "window is (" + std::to_string(inputs.left) + ", " +
                                                       std::to_string(inputs.right) +
                                                       "); each side is a count of tokens, or -1 for unlimited");
  // A window as long as the longest possible clip is unlimited; clamping also avoids overflow in positions.
  const auto side = [&](std::int64_t tokens) {
    return tokens < 0 || tokens > batch.total_q + batch.total_k ? kUnlimited : tokens;
  };
  return {inputs.dtype,       inputs.heads, inputs.kv_heads, inputs.head_dim, batch.total_q, side(inputs.left),
          side(inputs.right), inputs.scale, inputs.q,        inputs.k,        inputs.v};
}

struct Task {
  AttentionSegment segment;
  double cost;
};

// Keys visible to any query of the segment.
std::int64_t count_visible_keys(const AttentionView& view, const AttentionSegment& segment) {
  const std::int64_t begin = std::max<std::int64_t>(0, segment.first - view.left);
  return std::max<std::int64_t>(0, std::min(segment.keys, segment.last + view.right) - begin);
}

// Splits clips into segments of `rows` positions, starting at the first query or, with `cover_keys`, at the first query
// or key. Sorted by descending cost to balance threads.
std::vector<Task> make_tasks(const AttentionView& view, const AttentionBatch& batch, std::int64_t rows,
                             bool cover_keys) {
  std::vector<Task> tasks;
  for (std::int64_t clip = 0; clip < batch.clips; ++clip) {
    const std::int64_t begin_q = batch.cu_seqlens_q[clip], queries = batch.cu_seqlens_q[clip + 1] - begin_q;
    const std::int64_t begin_k = batch.cu_seqlens_k[clip], keys = batch.cu_seqlens_k[clip + 1] - begin_k;
    const std::int64_t start = cover_keys ? std::min<std::int64_t>(0, keys - queries) : keys - queries;
    for (std::int64_t first = start; first < keys; first += rows) {
      const AttentionSegment segment{begin_q, queries, begin_k, keys, first, std::min(first + rows, keys)};
      const std::int64_t visible = std::min(count_visible_keys(view, segment), view.left + view.right + 1);
      // Softmax and packing cost about as much as 16 more keys.
      tasks.push_back({segment, static_cast<double>(segment.last - first) * static_cast<double>(visible + 16)});
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
  return tasks;
}

// Calls run(segment, first_head, last_head, scratch) for every segment and head. Heads of a token are adjacent in
// memory: a call takes several heads if there are enough tasks for all threads.
template <class Run>
void run_tasks(const std::vector<Task>& tasks, std::int64_t heads, double cost_unit, std::int64_t scratch_bytes,
               int threads, const Run& run) {
  double total = 0.0;
  for (const Task& task : tasks) total += task.cost * cost_unit * static_cast<double>(heads);
  const double max_threads = static_cast<double>(std::max(threads, 1));
  const int thread_count = static_cast<int>(std::clamp(total / kWorkPerThread, 1.0, max_threads));
  const std::int64_t count = static_cast<std::int64_t>(tasks.size());
  const std::int64_t heads_per_task =
      std::clamp<std::int64_t>(count * heads / (thread_count * kTasksPerThread), 1, std::max<std::int64_t>(1, heads));
  const std::int64_t head_groups = (heads + heads_per_task - 1) / heads_per_task;
  std::vector<std::unique_ptr<AlignedArray<std::byte>>> scratch;
  for (int thread = 0; thread < thread_count; ++thread)
    scratch.push_back(std::make_unique<AlignedArray<std::byte>>(scratch_bytes));
  parallel_for(count * head_groups, thread_count, [&](std::int64_t i, int thread) {
    const std::int64_t first = i % head_groups * heads_per_task;
    run(tasks[static_cast<std::size_t>(i / head_groups)].segment, first, std::min(first + heads_per_task, heads),
        scratch[static_cast<std::size_t>(thread)]->get());
  });
}

}  // namespace

void varlen_attention(const AttentionInputs& inputs, const AttentionBatch& batch, const AttentionOutputs& outputs,
                      int threads) {
  const AttentionView view = checked_view(inputs, batch);
  const AttentionKernel kernel = chosen_kernel(view.dtype);
  const std::vector<Task> tasks = make_tasks(view, batch, kForwardRows, false);
  std::int64_t rows = 0, keys = 0;
  for (const Task& task : tasks) {
    rows = std::max(rows, task.segment.last - task.segment.first);
    keys = std::max(keys, count_visible_keys(view, task.segment));
  }
  run_tasks(tasks, view.heads, static_cast<double>(2 * view.head_dim), kernel.forward_bytes(view, rows, keys), threads,
            [&](const AttentionSegment& segment, std::int64_t first_head, std::int64_t last_head, void* scratch) {
              kernel.forward(view, segment, first_head, last_head, outputs, scratch);
            });
}

void varlen_attention_backward(const AttentionInputs& inputs, const AttentionBatch& batch,
                               const AttentionGradients& gradients, int threads) {
  const AttentionView view = checked_view(inputs, batch);
  const AttentionKernel kernel = chosen_kernel(view.dtype);
  const std::vector<Task> tasks = make_tasks(view, batch, backward_rows(view.head_dim), true);
  std::int64_t rows = 0, keys = 0;
  for (const Task& task : tasks) {
    rows = std::max(rows, task.segment.last - task.segment.first);
    keys = std::max(keys, task.segment.keys);
  }
  const std::int64_t group = view.heads / view.kv_heads;
  run_tasks(tasks, view.kv_heads, static_cast<double>(5 * group * view.head_dim),
            kernel.backward_bytes(view, rows, keys), threads,
            [&](const AttentionSegment& segment, std::int64_t first_head, std::int64_t last_head, void* scratch) {
              kernel.backward(view, segment, first_head, last_head, gradients, scratch);
            });
}

}  // namespace slap_fast
