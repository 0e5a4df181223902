// Subframe (9.2): prediction and residual, then samples.
#pragma once

#include "flac/bit_reader.h"
#include "flac/build.h"
#include "flac/types.h"

SLAP_FAST_FLAC_BEGIN

// Residuals of a Rice partition, in plain code. Returns the OR of the folded residuals, 2^32 or more if one does not
// fit 32 bits.
struct PlainRice {
  SLAP_FAST_FLAC_INLINE std::uint64_t operator()(BitReader& reader, int parameter, std::int32_t count,
                                                 std::int32_t* out, std::int32_t stride) const {
    std::uint64_t all = 0;
    const std::uint32_t limit = 0xFFFFFFFFu >> parameter;
    for (std::int32_t i = 0; i < count; ++i) {
      const std::uint32_t quotient = reader.read_unary(limit);
      if (quotient > limit || reader.overrun) return ~std::uint64_t{0};
      const std::uint32_t folded = quotient << parameter | reader.read(parameter);
      all |= folded;
      out[static_cast<std::int64_t>(i) * stride] =
          static_cast<std::int32_t>(folded >> 1) ^ -static_cast<std::int32_t>(folded & 1);
    }
    return all;
  }
};

// Rice partitions (9.2.5).
struct Partitions {
  std::int32_t size;
  int parameter_bits;
  int escape;  // the parameter that announces plain integers
};

SLAP_FAST_FLAC_INLINE Error read_partitions(BitReader& reader, std::int32_t block, std::int32_t order,
                                            Partitions& partitions) {
  const std::uint32_t method = reader.read(2);
  if (method > 1) return Error::bad_subframe;
  partitions.parameter_bits = method ? 5 : 4;
  partitions.escape = method ? 31 : 15;
  const int partition_order = static_cast<int>(reader.read(4));
  partitions.size = block >> partition_order;
  if (reader.overrun) return Error::truncated;
  return partitions.size << partition_order == block && partitions.size >= order && partitions.size > 0
             ? Error::ok
             : Error::bad_subframe;
}

// Residuals from sample `order` on. `peak`: a bound of their magnitudes.
template <class Rice>
SLAP_FAST_FLAC_INLINE Error read_residual(BitReader& reader, std::int32_t block, std::int32_t order, std::int32_t* out,
                                          std::int32_t stride, std::uint32_t& peak, const Rice& rice) {
  Partitions partitions;
  const Error error = read_partitions(reader, block, order, partitions);
  if (error != Error::ok) return error;
  std::uint64_t folded = 0;
  std::int32_t done = order;
  for (std::int32_t end = partitions.size; end <= block; end += partitions.size) {
    const int parameter = static_cast<int>(reader.read(partitions.parameter_bits));
    std::int32_t* at = out + static_cast<std::int64_t>(done) * stride;
    if (parameter < partitions.escape) {
      folded |= rice(reader, parameter, end - done, at, stride);
    } else {
      const int bits = static_cast<int>(reader.read(5));
      if (bits) folded |= (std::uint64_t{1} << bits) - 1;
      for (std::int32_t i = 0; i < end - done && !reader.overrun; ++i)
        at[static_cast<std::int64_t>(i) * stride] = reader.read_signed(bits);
    }
    if (reader.overrun) return Error::truncated;
    if (folded >> 32) return Error::bad_subframe;
    done = end;
  }
  // A folded residual of n bits has a magnitude of at most 2^(n - 1).
  peak = folded ? 1u << (63 - leading_zeros(folded)) : 0;
  return Error::ok;
}

enum class Kind { constant, verbatim, predicted };

// Everything before the residual: type, wasted bits, the first samples to `first`, coefficients.
SLAP_FAST_FLAC_INLINE Error read_subframe_header(BitReader& reader, std::int32_t block, std::int32_t bits,
                                                 std::int32_t* first, std::int32_t stride, Predictor& predictor,
                                                 Kind& kind) {
  const bool reserved = reader.read(1);
  const int type = static_cast<int>(reader.read(6));
  predictor.order = 0;
  predictor.shift = 0;
  predictor.wasted = 0;
  predictor.peak = 0;
  if (reader.read(1)) {
    const std::uint32_t zeros = reader.read_unary(kMaxBits + 1);
    if (!reader.overrun && static_cast<std::int32_t>(zeros) + 1 >= bits) return Error::bad_subframe;
    predictor.wasted = static_cast<std::int32_t>(zeros) + 1;
    bits -= predictor.wasted;
  }
  if (reader.overrun) return Error::truncated;
  if (reserved) return Error::bad_subframe;
  predictor.bits = bits;
  kind = type == 0 ? Kind::constant : type == 1 ? Kind::verbatim : Kind::predicted;
  if (kind != Kind::predicted) return Error::ok;
  if (type < 8 || (type > 12 && type < 32)) return Error::bad_subframe;
  const std::int32_t order = type >= 32 ? type - 31 : type - 8;
  if (order > block) return Error::bad_subframe;
  predictor.order = order;
  for (std::int32_t i = 0; i < order; ++i) first[static_cast<std::int64_t>(i) * stride] = reader.read_signed(bits);
  if (type >= 32) {
    const int precision = static_cast<int>(reader.read(4)) + 1;
    predictor.shift = reader.read_signed(5);
    if (!reader.overrun && (precision == 16 || predictor.shift < 0)) return Error::bad_subframe;
    for (std::int32_t j = 0; j < order; ++j) predictor.coefficients[j] = reader.read_signed(precision);
  } else {
    // The order-th difference of the samples is the residual.
    constexpr std::int32_t kFixed[5][4] = {{0, 0, 0, 0}, {1, 0, 0, 0}, {2, -1, 0, 0}, {3, -3, 1, 0}, {4, -6, 4, -1}};
    for (std::int32_t j = 0; j < order; ++j) predictor.coefficients[j] = kFixed[order][j];
  }
  return reader.overrun ? Error::truncated : Error::ok;
}

// Everything of a subframe but the prediction. `out` gets the first samples of the predictor, then residuals.
template <class Rice>
SLAP_FAST_FLAC_INLINE Error read_subframe(BitReader& reader, std::int32_t block, std::int32_t bits, std::int32_t* out,
                                          std::int32_t stride, Predictor& predictor, const Rice& rice) {
  Kind kind = Kind::constant;
  const Error error = read_subframe_header(reader, block, bits, out, stride, predictor, kind);
  if (error != Error::ok) return error;
  if (kind == Kind::predicted) return read_residual(reader, block, predictor.order, out, stride, predictor.peak, rice);
  const std::int32_t constant = kind == Kind::constant ? reader.read_signed(predictor.bits) : 0;
  for (std::int32_t i = 0; i < block && !reader.overrun; ++i)
    out[static_cast<std::int64_t>(i) * stride] = kind == Kind::constant ? constant : reader.read_signed(predictor.bits);
  return reader.overrun ? Error::truncated : Error::ok;
}

// A bound of |sum_j coefficients[j] * sample| for samples in range.
SLAP_FAST_FLAC_INLINE std::int64_t largest_prediction(const Predictor& predictor) {
  std::int64_t sum = 0;
  for (std::int32_t j = 0; j < predictor.order; ++j) {
    const std::int64_t c = predictor.coefficients[j];
    sum += c < 0 ? -c : c;
  }
  return sum << (predictor.bits - 1);
}

// Whether sums of 32 bits are exact for samples in range.
SLAP_FAST_FLAC_INLINE bool fits_32_bits(const Predictor& predictor) {
  const std::int64_t sum = largest_prediction(predictor);
  constexpr std::int64_t kMost = 0x7FFFFFFF;
  return sum <= kMost && (sum >> predictor.shift) + 1 + predictor.peak <= kMost;
}

// Residuals to samples with a history in registers: `kOrder` is at least the order. Whether all are in range.
template <int kOrder, class Sum>
SLAP_FAST_FLAC_INLINE bool predict(const Predictor& predictor, std::int32_t block, std::int32_t* out,
                                   std::int32_t stride) {
  std::int32_t history[kOrder], coefficients[kOrder];
  for (int j = 0; j < kOrder; ++j) {
    history[j] = 0;
    coefficients[j] = j < predictor.order ? predictor.coefficients[j] : 0;
  }
  const std::int64_t limit = std::int64_t{1} << (predictor.bits - 1);
  for (std::int32_t i = 0; i < block; ++i) {
    std::int32_t& place = out[static_cast<std::int64_t>(i) * stride];
    std::int64_t sample = place;
    if (i >= predictor.order) {
      Sum sum = 0;
      for (int j = kOrder - 1; j >= 0; --j) sum += static_cast<Sum>(coefficients[j]) * history[j];
      sample += sum >> predictor.shift;
      if (sample < -limit || sample >= limit) return false;
      place = static_cast<std::int32_t>(sample);
    }
    for (int j = kOrder - 1; j > 0; --j) history[j] = history[j - 1];
    history[0] = static_cast<std::int32_t>(sample);
  }
  return true;
}

// Residuals to samples, without the shift by wasted bits.
SLAP_FAST_FLAC_INLINE Error predict(const Predictor& predictor, std::int32_t block, std::int32_t* out,
                                    std::int32_t stride) {
  const bool narrow = fits_32_bits(predictor);
  bool fine;
  if (predictor.order == 0) {
    const std::int64_t limit = std::int64_t{1} << (predictor.bits - 1);
    fine = true;
    for (std::int32_t i = 0; i < block && predictor.peak >= limit; ++i) {
      const std::int64_t sample = out[static_cast<std::int64_t>(i) * stride];
      fine &= sample >= -limit && sample < limit;
    }
  } else if (predictor.order <= 8) {
    fine = narrow ? predict<8, std::int32_t>(predictor, block, out, stride)
                  : predict<8, std::int64_t>(predictor, block, out, stride);
  } else if (predictor.order <= 16) {
    fine = narrow ? predict<16, std::int32_t>(predictor, block, out, stride)
                  : predict<16, std::int64_t>(predictor, block, out, stride);
  } else {
    fine = predict<32, std::int64_t>(predictor, block, out, stride);
  }
  return fine ? Error::ok : Error::bad_subframe;
}

SLAP_FAST_FLAC_END
