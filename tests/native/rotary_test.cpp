// Rotary embedding against long double complex numbers: all dtypes, strides and shapes, and no out-of-bounds writes.
#include "cpu/rotary.h"

#include <complex>
#include <limits>

#include "native_tests.h"
#include "testing.h"

namespace testing {
namespace {

using slap_fast::DType;
using slap_fast::RotarySpec;

constexpr std::int64_t kInt64Max = std::numeric_limits<std::int64_t>::max();

// Relative tolerance of a stored result.
double roundoff(DType dtype) {
  if (dtype == DType::bfloat16) return 0x1p-8;
  return dtype == DType::float16 ? 0x1p-11 : 0x1p-21;
}

std::uint16_t bfloat16_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<std::uint16_t>(bits >> 16);
}

// Layout of [total, heads, head_dim] with gaps between heads and tokens, in one exactly sized array.
struct Tokens {
  std::int64_t heads, head_stride, token_stride, size;

  Tokens(Random& random, std::int64_t heads_, std::int64_t head_dim, std::int64_t total)
      : heads(heads_),
        head_stride(head_dim + random.between(0, 3)),
        token_stride(heads_ * head_stride + random.between(0, 5)),
        size(total > 0 && heads_ > 0 ? (total - 1) * token_stride + (heads_ - 1) * head_stride + head_dim : 0) {}

  std::int64_t at(std::int64_t token, std::int64_t head) const { return token * token_stride + head * head_stride; }
};

template <class Stored>
struct Type;
template <>
struct Type<float> {
  static float widened(float x, DType) { return x; }
  static float made(float x, DType) { return x; }
};
template <>
struct Type<std::uint16_t> {
  // float16 inputs are small multiples of 1/8 here.
  static float widened(std::uint16_t bits, DType dtype) {
    if (dtype == DType::bfloat16) {
      const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
      float x;
      std::memcpy(&x, &wide, sizeof x);
      return x;
    }
    const float magnitude = (bits & 0x7c00u) ? std::ldexp(1.0f + static_cast<float>(bits & 0x3ffu) / 1024.0f,
                                                          static_cast<int>(bits >> 10 & 0x1fu) - 15)
                                             : std::ldexp(static_cast<float>(bits & 0x3ffu), -24);
    return bits & 0x8000u ? -magnitude : magnitude;
  }
  static std::uint16_t made(float x, DType dtype) {
    if (dtype == DType::bfloat16) return bfloat16_of(x);
    int exponent;
    const float mantissa = std::frexp(std::fabs(x), &exponent);
    const auto bits = static_cast<std::uint16_t>(static_cast<int>((2.0f * mantissa - 1.0f) * 1024.0f));
    const int sign = x < 0.0f ? 0x8000 : 0;
    return static_cast<std::uint16_t>(sign | (exponent + 14) << 10 | bits);
  }
};

struct Call {
  RotarySpec spec{};
  std::vector<std::int64_t> cu_seqlens{0};
  DType dtype = DType::float32;
  int threads = 2;

  std::int64_t total() const { return cu_seqlens.back(); }
};

Call random_call(Random& random) {
  Call call;
  const std::int64_t axes = random.between(1, 2);
  call.spec.head_dim = 2 * axes * random.of<std::int64_t>({1, 3, 4, 8, 15, 16, 17, 32});
  call.spec.tokens_per_frame = axes == 1 ? 1 : random.of<std::int64_t>({1, 4, 5, 100});
  for (std::int64_t axis = 0; axis < axes; ++axis) call.spec.thetas.push_back(random.of<double>({0.5, 100.0, 1e4}));
  call.spec.inverse = random.once_in(2);
  for (std::int64_t clip = random.between(0, 4); clip > 0; --clip)
    call.cu_seqlens.push_back(call.cu_seqlens.back() + random.of<std::int64_t>({0, 1, 3, 63, 64, 65, 127, 128, 200}));
  call.dtype = random.of<DType>({DType::float32, DType::bfloat16, DType::float16});
  call.threads = random.of<int>({-1, 0, 1, 3, 64});
  return call;
}

slap_fast::RotaryTokens part(const Tokens& from, const void* in, const Tokens& to, void* out) {
  return {in, out, from.heads, from.token_stride, from.head_stride, to.token_stride, to.head_stride};
}

void run(const Call& call, const std::vector<slap_fast::RotaryTokens>& parts) {
  slap_fast::rotate(call.spec, call.cu_seqlens.data(), static_cast<std::int64_t>(call.cu_seqlens.size()) - 1,
                    call.total(), call.dtype, parts, call.threads);
}

template <class Stored>
void check_token(const Call& call, const Stored* in, const Stored* out, std::int64_t position) {
  const std::int64_t axes = static_cast<std::int64_t>(call.spec.thetas.size());
  const std::int64_t half = call.spec.head_dim / (2 * axes);
  for (std::int64_t axis = 0; axis < axes; ++axis, in += 2 * half, out += 2 * half) {
    const std::int64_t frames = call.spec.tokens_per_frame;
    const std::int64_t place = axes == 1 ? position : axis == 0 ? position / frames : position % frames;
    for (std::int64_t i = 0; i < half; ++i) {
      using Complex = std::complex<long double>;
      const auto widened = [&](Stored x) { return static_cast<long double>(Type<Stored>::widened(x, call.dtype)); };
      const long double theta = call.spec.thetas[static_cast<std::size_t>(axis)];
      const long double angle = place * std::pow(theta, -static_cast<long double>(i) / half);
      const Complex source(widened(in[i]), widened(in[half + i]));
      const Complex turned = source * std::polar(1.0L, call.spec.inverse ? -angle : angle);
      const Complex error = Complex(widened(out[i]), widened(out[half + i])) - turned;
      require(std::abs(error) <= 2 * roundoff(call.dtype) * std::abs(source), "rotation of a pair");
    }
  }
}

template <class Stored>
void check_call(const Call& call, Random& random) {
  const std::int64_t head_dim = call.spec.head_dim, total = call.total();
  std::vector<Tokens> from, to;
  std::vector<ExactArray<Stored>> in, out;
  std::vector<slap_fast::RotaryTokens> parts, in_place;
  for (std::int64_t heads : {random.between(0, 3), random.between(1, 2)}) {
    from.emplace_back(random, heads, head_dim, total);
    to.emplace_back(random, heads, head_dim, total);
    in.emplace_back(from.back().size, random.between(0, 15));
    out.emplace_back(to.back().size, random.between(0, 15));
    for (std::int64_t i = 0; i < in.back().size(); ++i)
      in.back()[i] = Type<Stored>::made(static_cast<float>(random.between(1, 16) * (random.once_in(2) ? 1 : -1)) / 8.0f,
                                        call.dtype);
    std::memset(out.back().data(), 0xa5, static_cast<std::size_t>(to.back().size) * sizeof(Stored));
    parts.push_back(part(from.back(), in.back().data(), to.back(), out.back().data()));
    in_place.push_back(part(from.back(), in.back().data(), from.back(), in.back().data()));
  }
  run(call, parts);
  Stored untouched;
  std::memset(&untouched, 0xa5, sizeof untouched);
  for (std::size_t p = 0; p < parts.size(); ++p) {
    std::vector<bool> written(static_cast<std::size_t>(out[p].size()), false);
    std::size_t sequence = 0;
    for (std::int64_t token = 0; token < total; ++token) {
      while (call.cu_seqlens[sequence + 1] <= token) ++sequence;
      for (std::int64_t head = 0; head < from[p].heads; ++head) {
        check_token(call, in[p].data() + from[p].at(token, head), out[p].data() + to[p].at(token, head),
                    token - call.cu_seqlens[sequence]);
        for (std::int64_t i = 0; i < head_dim; ++i) written[static_cast<std::size_t>(to[p].at(token, head) + i)] = true;
      }
    }
    for (std::int64_t i = 0; i < out[p].size(); ++i)
      require(written[static_cast<std::size_t>(i)] || std::memcmp(&out[p][i], &untouched, sizeof(Stored)) == 0,
              "written between the heads");
  }
  run(call, in_place);
  for (std::size_t p = 0; p < parts.size(); ++p)
    for (std::int64_t token = 0; token < total; ++token)
      for (std::int64_t head = 0; head < from[p].heads; ++head)
        require(std::memcmp(in[p].data() + from[p].at(token, head), out[p].data() + to[p].at(token, head),
                            static_cast<std::size_t>(head_dim) * sizeof(Stored)) == 0,
                "bits in place differ");
}

void check_malformed() {
  const auto rejected = [](const std::string& what, auto change) {
    Call call;
    call.spec.head_dim = 8;
    call.spec.tokens_per_frame = 4;
    call.spec.thetas = {10.0, 20.0};
    call.cu_seqlens = {0, 10};
    std::vector<slap_fast::RotaryTokens> parts;
    change(call, parts);
    require_rejected(what, [&] { run(call, parts); });
  };
  for (const std::vector<std::int64_t>& offsets : std::vector<std::vector<std::int64_t>>{
           {1, 10}, {0, 7, 3, 10}, {0, -1, 10}, {0, kInt64Max, 10}, {5}, {-kInt64Max, 10}})
    rejected("malformed cu_seqlens", [&](Call& call, auto&) { call.cu_seqlens = offsets; });
  for (std::int64_t head_dim : {-8, 2, 6, 9})
    rejected("head_dim", [&](Call& call, auto&) { call.spec.head_dim = head_dim; });
  for (std::int64_t frames : {std::int64_t{0}, std::int64_t{-1}, -kInt64Max})
    rejected("tokens_per_frame", [&](Call& call, auto&) { call.spec.tokens_per_frame = frames; });
  for (const std::vector<double>& thetas :
       std::vector<std::vector<double>>{{}, {1, 2, 3}, {0, 1}, {1, -1}, {NAN, 1}, {1, INFINITY}})
    rejected("thetas", [&](Call& call, auto&) { call.spec.thetas = thetas; });
  rejected("negative heads", [](Call&, auto& parts) { parts.push_back({nullptr, nullptr, -1, 0, 0, 0, 0}); });
}

}  // namespace

void test_rotary() {
  for (slap_fast::Isa isa : isas_of_this_machine()) {
    slap_fast::force_isa(slap_fast::isa_name(isa));
    Random random(11);
    for (int trial = 0; trial < 60; ++trial) {
      const Call call = random_call(random);
      if (call.dtype == DType::float32)
        check_call<float>(call, random);
      else
        check_call<std::uint16_t>(call, random);
    }
    check_malformed();
  }
}

}  // namespace testing
