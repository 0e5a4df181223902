// Products of float32 rows and int8 weights against integer sums, on exactly sized arrays; and the code for VNNI with
// its instruction emulated, on any machine.
#include "cpu/int8_product.h"

#include <algorithm>
#include <limits>

#include "native_tests.h"
#include "testing.h"

namespace slap_fast::emulated_vnni {
extern const Int8Kernel int8_product_kernel;
}

namespace testing {
namespace {

using slap_fast::Int8Kernel;

struct Problem {
  std::int64_t rows, columns, depth, x_stride;
  ExactArray<float> x, scales, bias;
  ExactArray<std::int8_t> weight;
  bool has_bias;

  // Rows of whole numbers whose largest magnitude is 127 are quantized to themselves; all results are exact then.
  Problem(Random& random, std::int64_t rows_, std::int64_t columns_, std::int64_t depth_, bool exact)
      : rows(rows_),
        columns(columns_),
        depth(depth_),
        x_stride(depth + random.between(0, 3)),
        x(poisoned(rows && depth ? (rows - 1) * x_stride + depth : 0, random.between(0, 15))),
        scales(columns, random.between(0, 15)),
        bias(columns, random.between(0, 15)),
        weight(columns * depth, random.between(0, 63)),
        has_bias(random.once_in(2)) {
    const bool extreme = random.once_in(3);  // sums of pairs that saturate 16 bits
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t k = 0; k < depth; ++k) {
        const std::int64_t value =
            k == 0 || extreme ? 127 - 254 * random.between(0, extreme) : random.between(-127, 127);
        x[row * x_stride + k] = exact ? static_cast<float>(value) : random.uniform(-1.0f, 1.0f) * 0x1p20f;
      }
    for (std::int64_t i = 0; i < columns * depth; ++i)
      weight[i] = static_cast<std::int8_t>(extreme ? 127 : random.between(-127, 127));
    for (std::int64_t column = 0; column < columns; ++column) {
      scales[column] = std::ldexp(1.0f, static_cast<int>(random.between(-6, 0)));
      bias[column] = static_cast<float>(random.between(-4, 4));
    }
  }

  ExactArray<float> run(Random& random, const Int8Kernel& kernel, std::int64_t stride) const {
    ExactArray<std::int8_t> panels(int8_panel_bytes(kernel, columns, depth), random.between(0, 63));
    ExactArray<std::int32_t> starts(int8_starts(kernel, columns), random.between(0, 15));
    kernel.pack(weight.data(), columns, depth, panels.data(), starts.data());
    ExactArray<float> out = poisoned(rows && columns ? (rows - 1) * stride + columns : 0, random.between(0, 15));
    slap_fast::int8_product(
        kernel, x.data(), x_stride, rows,
        {panels.data(), starts.data(), scales.data(), has_bias ? bias.data() : nullptr, columns, depth}, out.data(),
        stride, random.of<int>({-1, 1, 2, 5}));
    return out;
  }
};

std::vector<const Int8Kernel*> kernels() {
  std::vector<const Int8Kernel*> all = slap_fast::int8_kernels();
  all.push_back(&slap_fast::emulated_vnni::int8_product_kernel);
  return all;
}

void check_product(Random& random) {
  const std::int64_t rows = random.of<std::int64_t>({0, 1, 2, 5, 6, 7, 12, 13, 29, 200});
  const std::int64_t columns = random.of<std::int64_t>({0, 1, 7, 8, 17, 33, 300, 600});
  const std::int64_t depth = random.of<std::int64_t>({0, 1, 2, 3, 5, 64, 385});
  const Problem problem(random, rows, columns, depth, true), other(random, rows, columns, depth, false);
  const std::int64_t stride = columns + random.between(0, 2);
  ExactArray<float> first = other.run(random, *kernels().back(), columns);
  for (const Int8Kernel* kernel : kernels()) {
    const ExactArray<float> out = problem.run(random, *kernel, stride);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = 0; column < columns; column += random.between(1, 9)) {
        double sum = 0.0;
        for (std::int64_t k = 0; k < depth; ++k)
          sum += static_cast<double>(problem.x[row * problem.x_stride + k]) * problem.weight[column * depth + k];
        const float product = static_cast<float>(sum) * problem.scales[column];
        require(out[row * stride + column] == (problem.has_bias ? product + problem.bias[column] : product),
                std::string("int8 product of ") + kernel->name);
      }
      for (std::int64_t i = columns; columns && row + 1 < rows && i < stride; ++i)
        require(is_poison(out[row * stride + i]), "written between rows");
    }
    const ExactArray<float> rounded = other.run(random, *kernel, columns);
    require(same_bits(rounded.data(), first.data(), rounded.size()), std::string("other bits of ") + kernel->name);
  }
}

void check_special_rows() {
  constexpr std::int64_t kDepth = 37, kRows = 5;
  Random random(1);
  Problem problem(random, kRows, 19, kDepth, true);
  problem.has_bias = false;
  for (std::int64_t row = 0; row < 4; ++row)
    for (std::int64_t k = 0; k < kDepth; ++k) problem.x[row * problem.x_stride + k] = 0.0f;
  problem.x[1 * problem.x_stride + 5] = std::numeric_limits<float>::infinity();
  problem.x[2 * problem.x_stride + 36] = -std::numeric_limits<float>::quiet_NaN();
  problem.x[3 * problem.x_stride + 2] = std::numeric_limits<float>::denorm_min();
  for (const Int8Kernel* kernel : kernels()) {
    const ExactArray<float> out = problem.run(random, *kernel, 19);
    for (std::int64_t i = 0; i < out.size(); ++i) {
      const std::int64_t row = i / 19;
      const bool right = row == 1 || row == 2 ? std::isnan(out[i]) : row < 4 ? out[i] == 0.0f : std::isfinite(out[i]);
      require(right, "row of zeros, infinity or NaN");
    }
  }
}

void check_malformed() {
  const auto rejected = [](const std::string& what, std::int64_t rows, std::int64_t columns, std::int64_t depth) {
    require_rejected(what, [&] {
      slap_fast::int8_product(*slap_fast::int8_kernels().front(), nullptr, 0, rows,
                              {nullptr, nullptr, nullptr, nullptr, columns, depth}, nullptr, 0, 1);
    });
  };
  rejected("negative rows", -1, 1, 1);
  rejected("negative columns", 1, -1, 1);
  rejected("sums above 32 bits", 1, 1, slap_fast::kInt8MaxDepth + 1);
  require_rejected("unknown kernel", [] { slap_fast::int8_kernel("sse9"); });
}

}  // namespace

void test_int8_product() {
  for (slap_fast::Isa isa : isas_of_this_machine()) {
    slap_fast::force_isa(slap_fast::isa_name(isa));
    Random random(6);
    for (int trial = 0; trial < 40; ++trial) check_product(random);
    check_special_rows();
    check_malformed();
  }
}

}  // namespace testing
