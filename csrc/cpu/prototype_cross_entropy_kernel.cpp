// Sinkhorn-Knopp and self-distillation kernels; compiled once per instruction set.
#include "prototype_cross_entropy_kernel.h"

#include "score_lanes.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

// One expression for all passes, so that recomputed logits are bitwise equal.
class Logits {
 public:
  SLAP_FAST_INLINE explicit Logits(const RowLogits& params)
      : scale_(splat(params.inverse_temperature)), params_(params) {}
  SLAP_FAST_INLINE Lanes at(const float* row, std::int64_t i) const {
    return fms(load_unaligned(row + i), scale_, load_unaligned(params_.potential + i));
  }

 private:
  Lanes scale_;
  RowLogits params_;
};

SLAP_FAST_INLINE float max_logit(const float* row, std::int64_t padded, const Logits& logits) {
  Accumulators maxima(-__builtin_inff());
  for_vectors(padded, [&](std::int64_t i, int a) { maxima.acc[a] = max(maxima.acc[a], logits.at(row, i)); });
  return maxima.maximum();
}

RowLogSumExp normalizer(const float* row, std::int64_t padded, const RowLogits& params) {
  const Logits logits(params);
  const float row_max = max_logit(row, padded, logits);
  const Lanes shift = splat(row_max);
  Accumulators sums(0.0f);
  for_vectors(padded, [&](std::int64_t i, int a) { sums.acc[a] += exponential(logits.at(row, i) - shift); });
  return {row_max, reduce_sum(sums.sum())};
}

template <bool kAll>
SLAP_FAST_INLINE void add_rows(const float* rows, std::int64_t stride, std::int64_t row_count, std::int64_t begin,
                               std::int64_t end, const RowLogits& params, const float* row_max, const float* log_sum,
                               const ColumnState& columns) {
  const Logits logits(params);
  const std::int64_t count = kAll ? kRowsPerPass : row_count;
  for (std::int64_t i = begin; i < end; i += kLanes) {
    const Lanes old_max = load_unaligned(columns.max + i);
    Lanes values[kRowsPerPass], new_max = old_max;
    for (std::int64_t row = 0; row < count; ++row) {
      values[row] = logits.at(rows + row * stride, i) - splat(row_max[row]) - splat(log_sum[row]);
      new_max = max(new_max, values[row]);
    }
    Lanes sum = load_unaligned(columns.sum + i) * exponential(old_max - new_max);
    for (std::int64_t row = 0; row < count; ++row) sum += exponential(values[row] - new_max);
    store_unaligned(columns.max + i, new_max);
    store_unaligned(columns.sum + i, sum);
  }
}

void add_columns(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t begin, std::int64_t end,
                 const RowLogits& params, const float* row_max, const float* log_sum, const ColumnState& columns) {
  if (count == kRowsPerPass)
    add_rows<true>(rows, stride, count, begin, end, params, row_max, log_sum, columns);
  else
    add_rows<false>(rows, stride, count, begin, end, params, row_max, log_sum, columns);
}

template <bool kKeep>
SLAP_FAST_INLINE PairSums pair_sums(float* student, float* teacher, std::int64_t padded, float inverse_temperature,
                                    const RowLogits& params) {
  const Logits logits(params);
  const Lanes scale = splat(inverse_temperature);
  Accumulators maxima(-__builtin_inff());
  for_vectors(padded,
              [&](std::int64_t i, int a) { maxima.acc[a] = max(maxima.acc[a], load_unaligned(student + i) * scale); });
  const Lanes shift = splat(maxima.maximum()), teacher_shift = splat(max_logit(teacher, padded, logits));
  Accumulators student_sums(0.0f), teacher_sums(0.0f), products(0.0f);
  for_vectors(padded, [&](std::int64_t i, int a) {
    const Lanes x = load_unaligned(student + i) * scale - shift;
    const Lanes e = exponential(x), target = exponential(logits.at(teacher, i) - teacher_shift);
    student_sums.acc[a] += e;
    teacher_sums.acc[a] += target;
    products.acc[a] = fma(target, x, products.acc[a]);
    if (kKeep) {
      store_unaligned(student + i, e);
      store_unaligned(teacher + i, target);
    }
  });
  return {reduce_sum(student_sums.sum()), reduce_sum(teacher_sums.sum()), reduce_sum(products.sum())};
}

PairSums pair(float* student, float* teacher, std::int64_t padded, float inverse_temperature, const RowLogits& params,
              bool keep) {
  return keep ? pair_sums<true>(student, teacher, padded, inverse_temperature, params)
              : pair_sums<false>(student, teacher, padded, inverse_temperature, params);
}

template <class Format>
void write_gradient(const float* student, const float* teacher, std::int64_t padded, float student_scale,
                    float teacher_scale, typename Format::Stored* gradient) {
  const Lanes student_scales = splat(student_scale), teacher_scales = splat(teacher_scale);
  for_vectors(padded, [&](std::int64_t i, int) {
    const Lanes target = load_unaligned(teacher + i) * teacher_scales;
    Format::store(gradient + i, fms(load_unaligned(student + i), student_scales, target));
  });
}

void gradient(const float* student, const float* teacher, std::int64_t padded, float student_scale, float teacher_scale,
              DType dtype, void* out) {
  switch (dtype) {
    case DType::float32:
      return write_gradient<Float32>(student, teacher, padded, student_scale, teacher_scale, static_cast<float*>(out));
    case DType::bfloat16:
      return write_gradient<BFloat16>(student, teacher, padded, student_scale, teacher_scale,
                                      static_cast<std::uint16_t*>(out));
    case DType::float16:
      return write_gradient<Float16>(student, teacher, padded, student_scale, teacher_scale,
                                     static_cast<std::uint16_t*>(out));
  }
}

}  // namespace

PrototypeKernels prototype_kernels() { return {normalizer, add_columns, pair, gradient}; }

}  // namespace slap_fast::SLAP_FAST_ISA
