// Product of float32 rows and int8 weights; compiled once per instruction set.
#include "int8_product_kernel.h"

#include "int8_lanes.h"
#include "product_operands.h"
#include "rounding.h"

#define SLAP_FAST_NAME_OF(isa) #isa
#define SLAP_FAST_NAME(isa) SLAP_FAST_NAME_OF(isa)

namespace slap_fast::SLAP_FAST_ISA {
namespace {

constexpr int kPanel = DotLanes::count;
#if defined(__AVX512F__)
constexpr int kTileRowCount = 12, kVectors = 2;  // 24 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int kTileRowCount = 6, kVectors = 2;  // 12 of 16
#else
constexpr int kTileRowCount = 2, kVectors = 2;
#endif

// Adding it to a float of magnitude below 2^22 leaves the nearest integer, ties to even, in the lowest bits.
constexpr float kRounder = 12582912.0f;
constexpr std::int32_t kRounderBits = 0x4b400000;
// Rows of smaller values are quantized to zeros: the reciprocal of their scale could overflow.
constexpr float kSmallest = 1e-30f;

std::int32_t bits_of(float x) {
  std::int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

float largest_magnitude(const float* x, std::int64_t count) {
  // Compared as integers, NaN is above infinity, and infinity above all numbers.
  std::int32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t magnitude = bits_of(x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  float result;
  __builtin_memcpy(&result, &largest, sizeof result);
  return result;
}

template <class Dot>
struct Product {
  using Value = typename Dot::Value;

  static void pack(const std::int8_t* weight, std::int64_t columns, std::int64_t depth, std::int8_t* panels,
                   std::int32_t* starts) {
    for (std::int64_t column = 0; column < round_up(columns, kPanel); ++column) {
      std::int32_t sum = 0;
      std::int8_t* panel = panels + column / kPanel * kPanel * round_up(depth, Dot::group);
      for (std::int64_t k = 0; k < round_up(depth, Dot::group); ++k) {
        const std::int8_t value = column < columns && k < depth ? weight[column * depth + k] : std::int8_t{0};
        panel[(k / Dot::group * kPanel + column % kPanel) * Dot::group + k % Dot::group] = value;
        sum += value;
      }
      starts[column] = -Dot::offset * sum;
    }
  }

  static void quantize(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t depth, void* values,
                       float* scales) {
    const std::int64_t padded = round_up(depth, Dot::group);
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* in = x + row * stride;
      Value* out = static_cast<Value*>(values) + row * padded;
      const float largest = largest_magnitude(in, depth);
      const bool is_finite = largest <= 3.402823466e38f;
      const bool is_zero = largest < kSmallest;
      scales[row] = is_finite ? (is_zero ? 0.0f : largest / 127.0f) : __builtin_nanf("");
      if (!is_finite || is_zero) {
        for (std::int64_t k = 0; k < padded; ++k) out[k] = static_cast<Value>(Dot::offset);
        continue;
      }
      const float inverse = 127.0f / largest;
      for (std::int64_t k = 0; k < depth; ++k)
        out[k] = static_cast<Value>(bits_of(in[k] * inverse + kRounder) - kRounderBits + Dot::offset);
      for (std::int64_t k = depth; k < padded; ++k) out[k] = 0;
    }
  }

  // sums[r, v] = starts + dot(rows r, panel v), accumulated in registers.
  template <int kTileRows, int kTileVectors>
  static __attribute__((noinline)) void sum_tile(const Value* const* rows, const std::int8_t* panels,
                                                 std::int64_t panel, std::int64_t steps, const std::int32_t* starts,
                                                 std::int32_t* out) {
    DotLanes::Vector sums[kTileRows][kTileVectors];
    const Value* x[kTileRows];
    SLAP_FAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      x[r] = rows[r];
      SLAP_FAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v) sums[r][v] = DotLanes::load(starts + v * kPanel);
    }
    for (std::int64_t step = 0; step < steps; ++step, panels += Dot::group * kPanel) {
      decltype(Dot::weights(panels)) weights[kTileVectors];
      SLAP_FAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v) weights[v] = Dot::weights(panels + v * panel);
      SLAP_FAST_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        const DotLanes::Vector group = DotLanes::broadcast(x[r] + step * Dot::group);
        SLAP_FAST_UNROLL
        for (int v = 0; v < kTileVectors; ++v) sums[r][v] = Dot::add(sums[r][v], group, weights[v]);
        // Without it, compilers load the groups of all rows first, and run out of registers.
        __asm__ volatile("" ::: "memory");
      }
    }
    SLAP_FAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      SLAP_FAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v) DotLanes::store(out + (r * kTileVectors + v) * kPanel, sums[r][v]);
    }
  }

  // `valid` of kTileRows rows, and columns from `column` to at most `last`.
  template <int kTileRows, int kTileVectors>
  static void tile(const Int8Rows& rows, const Int8Weights& weights, std::int64_t row, std::int64_t valid,
                   std::int64_t column, std::int64_t last, float* out, std::int64_t stride) {
    const std::int64_t steps = round_up(weights.depth, Dot::group) / Dot::group, panel = steps * Dot::group * kPanel;
    const Value* x[kTileRows];
    for (int r = 0; r < kTileRows; ++r)
      x[r] = static_cast<const Value*>(rows.values) + (row + (r < valid ? r : 0)) * steps * Dot::group;
    alignas(64) std::int32_t sums[kTileRows * kTileVectors * kPanel];
    sum_tile<kTileRows, kTileVectors>(x, weights.panels + column / kPanel * panel, panel, steps,
                                      weights.starts + column, sums);
    const std::int64_t width = last - column;
    for (std::int64_t r = 0; r < valid; ++r) {
      float* target = out + (row + r) * stride + column;
      const std::int32_t* own = sums + r * kTileVectors * kPanel;
      const float scale = rows.scales[row + r];
      for (std::int64_t c = 0; c < width && c < kTileVectors * kPanel; ++c) {
        const float scaled = static_cast<float>(own[c]) * scale * weights.scales[column + c];
        target[c] = weights.bias == nullptr ? scaled : scaled + weights.bias[column + c];
      }
    }
  }

  template <int kTileVectors>
  static void multiply_panels(const Int8Rows& rows, const Int8Weights& weights, std::int64_t column, std::int64_t last,
                              float* out, std::int64_t stride) {
    for (std::int64_t row = 0; row < rows.rows;) {
      const std::int64_t left = rows.rows - row;
      if (left > kTileRowCount / 2) {
        tile<kTileRowCount, kTileVectors>(rows, weights, row, left < kTileRowCount ? left : kTileRowCount, column, last,
                                          out, stride);
        row += kTileRowCount;
      } else if (left > 1) {
        tile<kTileRowCount / 2, kTileVectors>(rows, weights, row, left, column, last, out, stride);
        row += kTileRowCount / 2;
      } else {
        tile<1, kTileVectors>(rows, weights, row, 1, column, last, out, stride);
        ++row;
      }
    }
  }

  static void multiply(const Int8Rows& rows, const Int8Weights& weights, std::int64_t first, std::int64_t last,
                       float* out, std::int64_t stride) {
    std::int64_t column = first;
    for (; last - column > (kVectors - 1) * kPanel; column += kVectors * kPanel)
      multiply_panels<kVectors>(rows, weights, column, last, out, stride);
    for (; column < last; column += kPanel) multiply_panels<1>(rows, weights, column, last, out, stride);
  }
};

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(SLAP_FAST_EMULATES_VNNI)
using Dot = ByteDot;
#else
using Dot = PairDot;
#endif

}  // namespace

extern const Int8Kernel int8_product_kernel;
const Int8Kernel int8_product_kernel{
    SLAP_FAST_NAME(SLAP_FAST_ISA), kPanel, Dot::group, sizeof(Dot::Value), Product<Dot>::pack, Product<Dot>::quantize,
    Product<Dot>::multiply};

}  // namespace slap_fast::SLAP_FAST_ISA
