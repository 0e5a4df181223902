// Compiled once for each instruction set.
#include "prototype_cross_entropy_kernel.h"

#include "score_lanes.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

// The same expression wherever logits are needed: it rounds the same.
class Logits {
 public:
  SLAP_FAST_INLINE explicit Logits(const RowLogits& how) : scale_(splat(how.inverse_temperature)), how_(how) {}
  SLAP_FAST_INLINE Lanes at(const float* row, std::int64_t i) const {
    return fms(load_unaligned(row + i), scale_, load_unaligned(how_.potential + i));
  }

 private:
  Lanes scale_;
  RowLogits how_;
};

SLAP_FAST_INLINE float largest_logit(const float* row, std::int64_t padded, const Logits& logits) {
  Slots maxima(-__builtin_inff());
  for_vectors(padded,
              [&](std::int64_t i, int slot) { maxima.of[slot] = at_least(maxima.of[slot], logits.at(row, i)); });
  return maxima.largest();
}

RowLogSumExp normalizer(const float* row, std::int64_t padded, const RowLogits& how) {
  const Logits logits(how);
  const float largest = largest_logit(row, padded, logits);
  const Lanes shift = splat(largest);
  Slots sums(0.0f);
  for_vectors(padded, [&](std::int64_t i, int slot) { sums.of[slot] += exponential(logits.at(row, i) - shift); });
  return {largest, sum_of(sums.sum())};
}

template <bool kAll>
SLAP_FAST_INLINE void add_rows(const float* rows, std::int64_t stride, std::int64_t given, std::int64_t begin,
                               std::int64_t end, const RowLogits& how, const float* largest, const float* log_sum,
                               const ColumnState& columns) {
  const Logits logits(how);
  const std::int64_t count = kAll ? kTogether : given;
  for (std::int64_t i = begin; i < end; i += kLanes) {
    const Lanes before = load_unaligned(columns.largest + i);
    Lanes values[kTogether], now = before;
    for (std::int64_t row = 0; row < count; ++row) {
      values[row] = logits.at(rows + row * stride, i) - splat(largest[row]) - splat(log_sum[row]);
      now = at_least(now, values[row]);
    }
    Lanes sum = load_unaligned(columns.sum + i) * exponential(before - now);
    for (std::int64_t row = 0; row < count; ++row) sum += exponential(values[row] - now);
    store_unaligned(columns.largest + i, now);
    store_unaligned(columns.sum + i, sum);
  }
}

void add_columns(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t begin, std::int64_t end,
                 const RowLogits& how, const float* largest, const float* log_sum, const ColumnState& columns) {
  if (count == kTogether)
    add_rows<true>(rows, stride, count, begin, end, how, largest, log_sum, columns);
  else
    add_rows<false>(rows, stride, count, begin, end, how, largest, log_sum, columns);
}

template <bool kKeep>
SLAP_FAST_INLINE PairSums pair_sums(float* student, float* teacher, std::int64_t padded, float inverse_temperature,
                                    const RowLogits& how) {
  const Logits logits(how);
  const Lanes scale = splat(inverse_temperature);
  Slots maxima(-__builtin_inff());
  for_vectors(padded, [&](std::int64_t i, int slot) {
    maxima.of[slot] = at_least(maxima.of[slot], load_unaligned(student + i) * scale);
  });
  const Lanes shift = splat(maxima.largest()), teacher_shift = splat(largest_logit(teacher, padded, logits));
  Slots student_sums(0.0f), teacher_sums(0.0f), products(0.0f);
  for_vectors(padded, [&](std::int64_t i, int slot) {
    const Lanes x = load_unaligned(student + i) * scale - shift;
    const Lanes e = exponential(x), target = exponential(logits.at(teacher, i) - teacher_shift);
    student_sums.of[slot] += e;
    teacher_sums.of[slot] += target;
    products.of[slot] = fma(target, x, products.of[slot]);
    if (kKeep) {
      store_unaligned(student + i, e);
      store_unaligned(teacher + i, target);
    }
  });
  return {sum_of(student_sums.sum()), sum_of(teacher_sums.sum()), sum_of(products.sum())};
}

PairSums pair(float* student, float* teacher, std::int64_t padded, float inverse_temperature, const RowLogits& how,
              bool keep) {
  return keep ? pair_sums<true>(student, teacher, padded, inverse_temperature, how)
              : pair_sums<false>(student, teacher, padded, inverse_temperature, how);
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
