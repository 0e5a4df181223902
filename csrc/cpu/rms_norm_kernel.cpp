// RMSNorm kernels; compiled once per instruction set.
#include "rms_norm_kernel.h"

#include "stored_lanes.h"

namespace slap_fast::SLAP_FAST_ISA {
namespace {

// Independent accumulators hide the latency of additions.
constexpr int kAccumulators = 4;

// Loads and stores of a full vector, and of the partial one at the end of a row.
struct FullVector {
  template <class Format>
  SLAP_FAST_INLINE Lanes load(const typename Format::Stored* in) const {
    return Format::load(in);
  }
  template <class Format>
  SLAP_FAST_INLINE void store(typename Format::Stored* out, Lanes x) const {
    Format::store(out, x);
  }
};
struct PartialVector {
  std::int64_t count;

  template <class Format>
  SLAP_FAST_INLINE Lanes load(const typename Format::Stored* in) const {
    return load_partial<Format>(in, count);
  }
  template <class Format>
  SLAP_FAST_INLINE void store(typename Format::Stored* out, Lanes x) const {
    store_partial<Format>(out, x, count);
  }
};

// Calls step(i, FullVector or PartialVector, accumulator) for each vector of a row.
template <class Step>
SLAP_FAST_INLINE void for_each_vector(std::int64_t width, Step step) {
  std::int64_t i = 0;
  for (; i + kAccumulators * kLanes <= width; i += kAccumulators * kLanes)
    for (int sum = 0; sum < kAccumulators; ++sum) step(i + sum * kLanes, FullVector{}, sum);
  for (; i + kLanes <= width; i += kLanes) step(i, FullVector{}, 0);
  if (i < width) step(i, PartialVector{width - i}, 0);
}

SLAP_FAST_INLINE float tree_sum(const Lanes (&sums)[kAccumulators]) {
  float values[kLanes];
  store_unaligned(values, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

template <class Format, bool kHasResidual>
void forward_rows(const RmsNormShape& shape, const RmsNormForward& tensors, std::int64_t begin, std::int64_t end) {
  using Stored = typename Format::Stored;
  const std::int64_t width = shape.width;
  const auto* weight = static_cast<const Stored*>(tensors.weight);
  for (std::int64_t row = begin; row < end; ++row) {
    const Stored* x = static_cast<const Stored*>(tensors.x) + row * width;
    Stored* normed = static_cast<Stored*>(tensors.normed) + row * width;
    Lanes squares[kAccumulators] = {};
    if constexpr (kHasResidual) {
      const Stored* residual = static_cast<const Stored*>(tensors.residual) + row * width;
      Stored* sum = static_cast<Stored*>(tensors.sum) + row * width;
      for_each_vector(width, [&](std::int64_t i, auto vector, int accumulator) SLAP_FAST_LAMBDA {
        const Lanes added = vector.template load<Format>(x + i) + vector.template load<Format>(residual + i);
        vector.template store<Format>(sum + i, added);
        const Lanes stored = vector.template load<Format>(sum + i);  // rounded to dtype, as the backward pass reads it
        squares[accumulator] = fma(stored, stored, squares[accumulator]);
      });
      x = sum;
    } else {
      for_each_vector(width, [&](std::int64_t i, auto vector, int accumulator) SLAP_FAST_LAMBDA {
        const Lanes value = vector.template load<Format>(x + i);
        squares[accumulator] = fma(value, value, squares[accumulator]);
      });
    }
    const Lanes mean = splat(tree_sum(squares) / static_cast<float>(width));
    const Lanes rstd = 1.0f / square_root(mean + splat(tensors.eps));
    tensors.rstd[row] = rstd[0];
    for_each_vector(width, [&](std::int64_t i, auto vector, int) SLAP_FAST_LAMBDA {
      const Lanes scaled = vector.template load<Format>(x + i) * rstd;
      vector.template store<Format>(normed + i, scaled * vector.template load<Format>(weight + i));
    });
  }
}

// With n = sum * rstd and normed = n * weight: d_sum = rstd * (grad * weight - n * mean(grad * weight * n)) + grad_sum,
// with the mean over the row, and d_weight = sum over rows of grad * n.
template <class Format, bool kHasGradSum>
void backward_rows(const RmsNormShape& shape, const RmsNormBackward& tensors, std::int64_t begin, std::int64_t end,
                   float* partial) {
  using Stored = typename Format::Stored;
  const std::int64_t width = shape.width;
  const auto* weight = static_cast<const Stored*>(tensors.weight);
  for (std::int64_t i = 0; i < width; ++i) partial[i] = 0.0f;
  for (std::int64_t row = begin; row < end; ++row) {
    const Stored* grad_normed = static_cast<const Stored*>(tensors.grad_normed) + row * width;
    const Stored* grad_sum = kHasGradSum ? static_cast<const Stored*>(tensors.grad_sum) + row * width : nullptr;
    const Stored* sum = static_cast<const Stored*>(tensors.sum) + row * width;
    Stored* grad = static_cast<Stored*>(tensors.grad) + row * width;
    const Lanes rstd = splat(tensors.rstd[row]);
    Lanes products[kAccumulators] = {};
    for_each_vector(width, [&](std::int64_t i, auto vector, int accumulator) SLAP_FAST_LAMBDA {
      const Lanes slope =
          vector.template load<Format>(grad_normed + i) * (vector.template load<Format>(sum + i) * rstd);
      products[accumulator] = fma(slope, vector.template load<Format>(weight + i), products[accumulator]);
      vector.template store<Float32>(partial + i, vector.template load<Float32>(partial + i) + slope);
    });
    const Lanes mean = splat(tree_sum(products) / static_cast<float>(width));
    for_each_vector(width, [&](std::int64_t i, auto vector, int) SLAP_FAST_LAMBDA {
      const Lanes scaled = vector.template load<Format>(sum + i) * rstd;
      const Lanes weighted = vector.template load<Format>(grad_normed + i) * vector.template load<Format>(weight + i);
      Lanes result = fnma(scaled, mean, weighted) * rstd;
      if constexpr (kHasGradSum) result += vector.template load<Format>(grad_sum + i);
      vector.template store<Format>(grad + i, result);
    });
  }
}

// Sums in float64, so that accuracy does not degrade with the number of rows.
template <class Format>
void reduce_partials(const float* partials, std::int64_t count, std::int64_t width, void* grad_weight) {
  auto* out = static_cast<typename Format::Stored*>(grad_weight);
  for_each_vector(width, [&](std::int64_t i, auto vector, int) SLAP_FAST_LAMBDA {
    double sums[kLanes] = {};
    for (std::int64_t block = 0; block < count; ++block) {
      const Lanes partial = vector.template load<Float32>(partials + block * width + i);
      for (int lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(partial[lane]);
    }
    Lanes sum;
    for (int lane = 0; lane < kLanes; ++lane) sum[lane] = static_cast<float>(sums[lane]);
    vector.template store<Format>(out + i, sum);
  });
}

template <class Format>
void forward_stored(const RmsNormShape& shape, const RmsNormForward& tensors, std::int64_t begin, std::int64_t end) {
  const auto run = tensors.residual ? forward_rows<Format, true> : forward_rows<Format, false>;
  run(shape, tensors, begin, end);
}

template <class Format>
void backward_stored(const RmsNormShape& shape, const RmsNormBackward& tensors, std::int64_t begin, std::int64_t end,
                     float* partial) {
  const auto run = tensors.grad_sum ? backward_rows<Format, true> : backward_rows<Format, false>;
  run(shape, tensors, begin, end, partial);
}

void forward(const RmsNormShape& shape, const RmsNormForward& tensors, std::int64_t begin, std::int64_t end) {
  switch (shape.dtype) {
    case DType::float32:
      return forward_stored<Float32>(shape, tensors, begin, end);
    case DType::bfloat16:
      return forward_stored<BFloat16>(shape, tensors, begin, end);
    case DType::float16:
      return forward_stored<Float16>(shape, tensors, begin, end);
  }
}

void backward(const RmsNormShape& shape, const RmsNormBackward& tensors, std::int64_t begin, std::int64_t end,
              float* partial) {
  switch (shape.dtype) {
    case DType::float32:
      return backward_stored<Float32>(shape, tensors, begin, end, partial);
    case DType::bfloat16:
      return backward_stored<BFloat16>(shape, tensors, begin, end, partial);
    case DType::float16:
      return backward_stored<Float16>(shape, tensors, begin, end, partial);
  }
}

void reduce(DType dtype, const float* partials, std::int64_t count, std::int64_t width, void* grad_weight) {
  switch (dtype) {
    case DType::float32:
      return reduce_partials<Float32>(partials, count, width, grad_weight);
    case DType::bfloat16:
      return reduce_partials<BFloat16>(partials, count, width, grad_weight);
    case DType::float16:
      return reduce_partials<Float16>(partials, count, width, grad_weight);
  }
}

}  // namespace

RmsNormKernels rms_norm_kernels() { return {forward, backward, reduce}; }

}  // namespace slap_fast::SLAP_FAST_ISA
