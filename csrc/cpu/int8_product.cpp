#include "int8_product.h"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "aligned_array.h"
#include "isa.h"
#include "parallel.h"
#include "rounding.h"

namespace slap_fast {
namespace {

constexpr std::int64_t kRowBytes = 128 << 10;  // of the quantized rows of a task, which stay in L2
constexpr std::int64_t kMaxRows = 192;
constexpr std::int64_t kColumnTask = 256;  // columns that are worth quantizing the rows once more
constexpr std::int64_t kTasksPerThread = 4;
constexpr double kWorkPerThread = 4e6;  // multiplications that justify one more thread

struct Scratch {
  AlignedArray<std::uint8_t> values;
  AlignedArray<float> scales;
  Scratch(std::int64_t bytes, std::int64_t rows) : values(bytes), scales(rows) {}
};

}  // namespace

std::vector<const Int8Kernel*> int8_kernels() {
  std::vector<const Int8Kernel*> kernels;
  const Isa isa = chosen_isa();
  (void)isa;
#if defined(SLAP_FAST_HAS_AVX512_VNNI)
  if (isa >= Isa::avx512 && uses_vnni(Vnni::avx512)) kernels.push_back(&avx512_vnni::int8_product_kernel);
#endif
#if defined(SLAP_FAST_HAS_AVX512)
  if (isa >= Isa::avx512) kernels.push_back(&avx512::int8_product_kernel);
#endif
#if defined(SLAP_FAST_HAS_AVX2_VNNI)
  if (isa >= Isa::avx2 && uses_vnni(Vnni::avx2)) kernels.push_back(&avx2_vnni::int8_product_kernel);
#endif
#if defined(SLAP_FAST_HAS_AVX2)
  if (isa >= Isa::avx2) kernels.push_back(&avx2::int8_product_kernel);
#endif
  kernels.push_back(&baseline::int8_product_kernel);
  return kernels;
}

const Int8Kernel& int8_kernel(const std::string& name) {
  std::string names;
  for (const Int8Kernel* kernel : int8_kernels()) {
    if (name == kernel->name) return *kernel;
    names += (names.empty() ? "" : ", ") + std::string(kernel->name);
  }
  throw std::invalid_argument("no int8 kernel '" + name + "' runs here; choose one of " + names);
}

std::int64_t int8_panel_bytes(const Int8Kernel& kernel, std::int64_t columns, std::int64_t depth) {
  return round_up(columns, kernel.lanes) * round_up(depth, kernel.group);
}

std::int64_t int8_starts(const Int8Kernel& kernel, std::int64_t columns) { return round_up(columns, kernel.lanes); }

void int8_product(const Int8Kernel& kernel, const float* x, std::int64_t x_stride, std::int64_t rows,
                  const Int8Weights& weights, float* out, std::int64_t out_stride, int threads) {
  const std::int64_t columns = weights.columns, depth = weights.depth;
  if (rows < 0 || columns < 0 || depth < 0 || depth > kInt8MaxDepth)
    throw std::invalid_argument("x has " + std::to_string(rows) + " rows and the weights are " +
                                std::to_string(columns) + " by " + std::to_string(depth) +
                                "; sizes cannot be negative, and the depth is at most " +
                                std::to_string(kInt8MaxDepth));
  if (rows == 0 || columns == 0) return;
  const double work = static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(depth);
  threads = static_cast<int>(std::clamp(work / kWorkPerThread, 1.0, static_cast<double>(std::max(threads, 1))));
  const std::int64_t row_bytes = round_up(depth, kernel.group) * kernel.value_bytes;
  const std::int64_t fitting = kRowBytes / std::max<std::int64_t>(row_bytes, 1) / 12 * 12;
  const std::int64_t row_task = std::min(rows, std::clamp<std::int64_t>(fitting, 12, kMaxRows));
  const std::int64_t row_tasks = (rows + row_task - 1) / row_task;
  std::int64_t parts = threads == 1 ? 1 : (threads * kTasksPerThread + row_tasks - 1) / row_tasks;
  parts = std::clamp<std::int64_t>(columns / kColumnTask, 1, std::max<std::int64_t>(parts, 1));
  const std::int64_t column_task = round_up((columns + parts - 1) / parts, 2 * kernel.lanes);
  const std::int64_t column_tasks = (columns + column_task - 1) / column_task;
  std::vector<std::unique_ptr<Scratch>> scratch;
  for (int thread = 0; thread < threads; ++thread)
    scratch.push_back(std::make_unique<Scratch>(row_task * row_bytes, row_task));
  parallel_for(row_tasks * column_tasks, threads, [&](std::int64_t task, int thread) {
    const Scratch& own = *scratch[static_cast<std::size_t>(thread)];
    const std::int64_t row = task / column_tasks * row_task, column = task % column_tasks * column_task;
    const std::int64_t count = std::min(row_task, rows - row);
    kernel.quantize(x + row * x_stride, x_stride, count, depth, own.values.get(), own.scales.get());
    kernel.multiply({own.values.get(), own.scales.get(), count}, weights, column,
                    std::min(columns, column + column_task), out + row * out_stride, out_stride);
  });
}

}  // namespace slap_fast
