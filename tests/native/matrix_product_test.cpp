// Matrix products against float64 sums, on exactly sized matrices.
#include "cpu/matrix_product.h"

#include <algorithm>

#include "native_tests.h"
#include "testing.h"

namespace testing {
namespace {

using slap_fast::DType;
using slap_fast::ProductSide;

// Multiples of 1/2, exact in every dtype: sums of their products are exact in float32.
float value_of(Random& random) { return static_cast<float>(random.between(-6, 6)) / 2.0f; }

std::uint16_t bits_of(float x, DType dtype) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (dtype == DType::bfloat16) return static_cast<std::uint16_t>(bits >> 16);
  if (x == 0.0f) return 0;
  return static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | ((bits >> 13 & 0x3fc00u) - (112u << 10)) |
                                    (bits >> 13 & 0x3ffu));
}

// [lanes, depth] with one unit stride and a gap in the other one.
struct Matrix {
  std::int64_t lanes, depth, lane_stride, depth_stride;
  ExactArray<float> floats;
  ExactArray<std::uint16_t> halves;

  Matrix(Random& random, DType dtype, std::int64_t lanes, std::int64_t depth)
      : lanes(lanes),
        depth(depth),
        lane_stride(random.once_in(2) ? 1 : depth + random.between(0, 3)),
        depth_stride(lane_stride == 1 ? lanes + random.between(0, 3) : 1),
        floats(size(), random.between(0, 15)),
        halves(dtype == DType::float32 ? 0 : size(), random.between(0, 31)) {
    for (std::int64_t i = 0; i < size(); ++i) {
      floats[i] = value_of(random);
      if (dtype != DType::float32) halves[i] = bits_of(floats[i], dtype);
    }
  }

  std::int64_t size() const { return lanes && depth ? (lanes - 1) * lane_stride + (depth - 1) * depth_stride + 1 : 0; }
  double at(std::int64_t lane, std::int64_t k) const { return floats[lane * lane_stride + k * depth_stride]; }
  ProductSide side(DType dtype) const {
    const void* data = dtype == DType::float32 ? static_cast<const void*>(floats.data()) : halves.data();
    return {dtype, data, lanes, depth, lane_stride, depth_stride};
  }
};

void check_product(Random& random) {
  const DType dtype = random.of<DType>({DType::float32, DType::bfloat16, DType::float16});
  const std::int64_t rows = random.of<std::int64_t>({0, 1, 7, 8, 17, 96, 97, 192, 193, 289});
  const std::int64_t columns = random.of<std::int64_t>({0, 1, 15, 16, 47, 48, 49, 241, 1921});
  const std::int64_t depth = random.of<std::int64_t>({0, 1, 2, 15, 17, 64, 385, 769});
  const Matrix left(random, dtype, rows, depth), right(random, dtype, columns, depth);
  const std::int64_t stride = columns + random.between(0, 2);
  const bool add = random.once_in(2);
  ExactArray<float> out = poisoned(rows && columns ? (rows - 1) * stride + columns : 0, random.between(0, 15));
  for (std::int64_t row = 0; add && row < rows; ++row)
    for (std::int64_t column = 0; column < columns; ++column) out[row * stride + column] = 1.5f;
  slap_fast::matrix_product(left.side(dtype), right.side(dtype), out.data(), stride, add,
                            random.of<int>({-1, 1, 2, 5}));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; column += random.between(1, 9)) {
      double sum = add ? 1.5 : 0.0;
      for (std::int64_t k = 0; k < depth; ++k) sum += left.at(row, k) * right.at(column, k);
      require(out[row * stride + column] == static_cast<float>(sum), "product");
    }
    for (std::int64_t i = columns; columns && row + 1 < rows && i < stride; ++i)
      require(is_poison(out[row * stride + i]), "written between rows");
  }
}

void check_malformed() {
  const auto rejected = [](const std::string& what, ProductSide left, ProductSide right) {
    require_rejected(what, [&] { slap_fast::matrix_product(left, right, nullptr, 1, false, 1); });
  };
  const ProductSide side{DType::float32, nullptr, 2, 2, 2, 1};
  ProductSide other = side;
  other.depth = 3;
  rejected("other depth", side, other);
  other = side;
  other.dtype = DType::bfloat16;
  rejected("other elements", side, other);
  other = side;
  other.depth_stride = 2;
  rejected("no unit stride", side, other);
  other = side;
  other.lanes = -1;
  rejected("negative size", other, side);
}

}  // namespace

void test_matrix_product() {
  for (slap_fast::Isa isa : isas_of_this_machine()) {
    slap_fast::force_isa(slap_fast::isa_name(isa));
    Random random(5);
    for (int trial = 0; trial < 60; ++trial) check_product(random);
    check_malformed();
  }
}

}  // namespace testing
