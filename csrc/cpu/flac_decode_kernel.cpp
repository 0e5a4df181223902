// FLAC frames to samples; compiled once per instruction set.
//
// A frame is sequential twice: the position of each Rice code depends on the one before, and each predicted sample on
// the one before. So reading and predicting are two passes. Reading keeps 64 bits in a register and decodes several
// codes between refills, speculating that they fit. Predicting runs over the subframes of eight channels, frames or
// files at once, one per SIMD lane: all have their residuals by then, whatever their positions in the file depended on.
#include "flac_decode_kernel.h"

#include "flac/bit_reader.h"
#include "flac/crc.h"
#include "flac/frame.h"
#include "flac/frame_header.h"
#include "flac/subframe.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace slap_fast::SLAP_FAST_ISA {
namespace {

using flac::BitReader;
using flac::Error;
using flac::FrameHeader;
using flac::Predictor;
using flac::SampleType;

std::uint64_t load_big_endian(const std::uint8_t* bytes) {
  std::uint64_t value;
  __builtin_memcpy(&value, bytes, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  value = __builtin_bswap64(value);
#endif
  return value;
}

// 64 for zero.
int zeros_before_one(std::uint64_t x) {
#if defined(__LZCNT__)
  return static_cast<int>(_lzcnt_u64(x));
#else
  return x ? __builtin_clzll(x) : 64;
#endif
}

// The bits of a BitReader in registers. `bits` has `have` valid ones; those behind are either zero or right.
struct FastBits {
  const std::uint8_t* base;
  const std::uint8_t* next;
  std::uint64_t bits;
  int have;

  FastBits(const BitReader& reader) : base(reader.data) {
    const std::int64_t position = reader.next * 8 - reader.count;
    next = base + position / 8 + 7;
    bits = load_big_endian(next - 7) << (position & 7);
    have = 56 - static_cast<int>(position & 7);
  }
  // To between 56 and 63 valid bits, without a branch; reads 8 bytes.
  void refill() {
    bits |= load_big_endian(next) >> have;
    next += (63 - have) >> 3;
    have |= 56;
  }
  void give_back(BitReader& reader) const {
    const std::int64_t position = (next - base) * 8 - have;
    reader.next = position / 8;
    reader.buffer = 0;
    reader.count = 0;
    reader.refill();
    reader.skip(static_cast<int>(position & 7));
  }
};

// Folded residuals of `kGroup` codes at a time; returns how many there are. Stops before a group that does not fit the
// valid bits, and near the end of the file.
template <int kGroup>
std::int32_t read_groups(FastBits& state, const std::uint8_t* last, int parameter, std::int32_t count,
                         std::int32_t* out) {
  std::int32_t done = 0;
  FastBits fast = state;
  const int width = parameter + 1, tail = 63 - parameter;
  const std::uint32_t marker = 1u << parameter;
  while (done + kGroup <= count && fast.next <= last) {
    fast.refill();
    std::uint64_t bits = fast.bits;
    int used = kGroup * width;
    std::uint32_t folded[kGroup];
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
      const int zeros = zeros_before_one(bits);
      used += zeros;
      bits <<= zeros & 63;
      folded[i] = (static_cast<std::uint32_t>(zeros) << parameter) + static_cast<std::uint32_t>(bits >> tail) - marker;
      bits <<= width;
    }
    if (used > fast.have) break;
    fast.bits = bits;
    fast.have -= used;
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) out[done + i] = static_cast<std::int32_t>(folded[i]);
    done += kGroup;
  }
  state = fast;
  return done;
}

struct FastRice {
  std::uint64_t operator()(BitReader& reader, int parameter, std::int32_t count, std::int32_t* out,
                           std::int32_t /*stride*/) const {
    std::uint64_t all = 0;
    std::int32_t done = 0;
    const std::uint8_t* last = reader.data + reader.size - 8;
    while (done < count) {
      // Codes of `parameter` bits are shortest for residuals whose codes have about parameter + 3 bits.
      const int group = parameter <= 2 ? 6 : parameter <= 8 ? 4 : parameter <= 14 ? 3 : 2;
      const std::int32_t begin = done;
      if (parameter <= 22 && reader.size - reader.next >= 16) {
        FastBits fast(reader);
        std::int32_t* at = out + done;
        const std::int32_t left = count - done;
        done += group == 6   ? read_groups<6>(fast, last, parameter, left, at)
                : group == 4 ? read_groups<4>(fast, last, parameter, left, at)
                : group == 3 ? read_groups<3>(fast, last, parameter, left, at)
                             : read_groups<2>(fast, last, parameter, left, at);
        // Fewer than a group is left, or a group is too long: one by one until it is over.
        const std::int32_t singly = count - done < group ? count - done : group;
        done += read_groups<1>(fast, last, parameter, singly, out + done);
        fast.give_back(reader);
        std::uint32_t folded = 0;
        for (std::int32_t i = begin; i < done; ++i) {
          const auto value = static_cast<std::uint32_t>(out[i]);
          folded |= value;
          out[i] = static_cast<std::int32_t>((value >> 1) ^ (0u - (value & 1)));
        }
        all |= folded;
      }
      if (done == begin) {  // a code of 57 bits or more, or the end of the file
        const std::int32_t few = count - done < group ? count - done : group;
        all |= flac::PlainRice()(reader, parameter, few, out + done, 1);
        done += few;
      }
      if (reader.overrun || all >> 32) return all;
    }
    return all;
  }
};

// CRC-16 of eight bytes at a time: table[j] is for a byte that j others follow.
struct CrcTables {
  std::uint16_t of[8][256];
  constexpr CrcTables() : of() {
    for (int byte = 0; byte < 256; ++byte) {
      std::uint32_t crc = static_cast<std::uint32_t>(byte) << 8;
      for (int bit = 0; bit < 8; ++bit) crc = (crc << 1) ^ (crc & 0x8000 ? 0x18005u : 0);
      of[0][byte] = static_cast<std::uint16_t>(crc);
    }
    for (int j = 1; j < 8; ++j)
      for (int byte = 0; byte < 256; ++byte)
        of[j][byte] = static_cast<std::uint16_t>((of[j - 1][byte] << 8) ^ of[0][of[j - 1][byte] >> 8]);
  }
};
constexpr CrcTables kCrc;

std::uint32_t crc16_by_tables(const std::uint8_t* bytes, std::int64_t count) {
  std::uint32_t crc = 0;
  for (; count >= 8; bytes += 8, count -= 8) {
    const std::uint32_t first = crc ^ (static_cast<std::uint32_t>(bytes[0]) << 8 | bytes[1]);
    crc = kCrc.of[7][first >> 8] ^ kCrc.of[6][first & 255] ^ kCrc.of[5][bytes[2]] ^ kCrc.of[4][bytes[3]] ^
          kCrc.of[3][bytes[4]] ^ kCrc.of[2][bytes[5]] ^ kCrc.of[1][bytes[6]] ^ kCrc.of[0][bytes[7]];
  }
  for (; count > 0; ++bytes, --count) crc = ((crc << 8) & 0xFFFF) ^ kCrc.of[0][(crc >> 8) ^ *bytes];
  return crc;
}

#if defined(__PCLMUL__)

// t^power modulo the polynomial of the checksum.
constexpr long long power_of_t(int power) {
  std::uint32_t remainder = 1;
  for (int i = 0; i < power; ++i) remainder = (remainder << 1) ^ (remainder & 0x8000 ? 0x18005u : 0);
  return remainder;
}

// 16 bytes as a polynomial, the first byte highest.
__m128i load_polynomial(const std::uint8_t* bytes) {
  const __m128i reversed = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)), reversed);
}

// sum * t^distance + next, where `powers` has t^distance and t^(distance + 64).
__m128i fold(__m128i sum, __m128i powers, __m128i next) {
  return _mm_xor_si128(next,
                       _mm_xor_si128(_mm_clmulepi64_si128(sum, powers, 0x00), _mm_clmulepi64_si128(sum, powers, 0x11)));
}

// Replaces the bytes by 16 with the same remainder, from four sums that do not wait for each other.
std::uint32_t crc16(const std::uint8_t* bytes, std::int64_t count) {
  if (count < 128) return crc16_by_tables(bytes, count);
  const __m128i far = _mm_set_epi64x(power_of_t(512 + 64), power_of_t(512));
  const __m128i near = _mm_set_epi64x(power_of_t(128 + 64), power_of_t(128));
  __m128i sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = load_polynomial(bytes + 16 * i);
  for (bytes += 64, count -= 64; count >= 64; bytes += 64, count -= 64)
    for (int i = 0; i < 4; ++i) sums[i] = fold(sums[i], far, load_polynomial(bytes + 16 * i));
  __m128i sum = sums[0];
  for (int i = 1; i < 4; ++i) sum = fold(sum, near, sums[i]);
  for (; count >= 16; bytes += 16, count -= 16) sum = fold(sum, near, load_polynomial(bytes));
  std::uint8_t rest[32];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), sum);
  for (int i = 0; i < 8; ++i) {
    const std::uint8_t low = rest[i];
    rest[i] = rest[15 - i];
    rest[15 - i] = low;
  }
  __builtin_memcpy(rest + 16, bytes, static_cast<std::size_t>(count));
  return crc16_by_tables(rest, 16 + count);
}

#else

std::uint32_t crc16(const std::uint8_t* bytes, std::int64_t count) { return crc16_by_tables(bytes, count); }

#endif

#if defined(__AVX2__)

void transpose(__m256i (&x)[kFlacLanes]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
    x[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
  }
}

struct LaneFilters {
  alignas(32) std::int32_t coefficients[flac::kMaxOrder][kFlacLanes];
  alignas(32) std::int32_t shifts[kFlacLanes];
};

// Residuals to samples in all lanes, with zeros before the first sample. Sums wrap; see flac::fits_32_bits.
template <int kOrder>
void filter(std::int32_t* lanes, std::int64_t length, std::int32_t block, const LaneFilters& filters) {
  __m256i samples[kOrder + 8];  // the last kOrder, then eight new ones
  for (int j = 0; j < kOrder; ++j) samples[j] = _mm256_setzero_si256();
  const __m256i shifts = _mm256_load_si256(reinterpret_cast<const __m256i*>(filters.shifts));
  for (std::int32_t row = 0; row < block; row += 8) {
    __m256i x[kFlacLanes];
    for (int lane = 0; lane < kFlacLanes; ++lane)
      x[lane] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes + lane * length + row));
    transpose(x);
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) {
      __m256i sum = _mm256_setzero_si256();
      // The newest sample last: the next one waits for it.
#pragma GCC unroll 32
      for (int j = kOrder - 1; j >= 0; --j) {
        const __m256i c = _mm256_load_si256(reinterpret_cast<const __m256i*>(filters.coefficients[j]));
        sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(samples[kOrder + t - 1 - j], c));
      }
      x[t] = _mm256_add_epi32(x[t], _mm256_srav_epi32(sum, shifts));
      samples[kOrder + t] = x[t];
    }
#pragma GCC unroll 32
    for (int j = 0; j < kOrder; ++j) samples[j] = samples[j + 8];
    transpose(x);
    for (int lane = 0; lane < kFlacLanes; ++lane)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes + lane * length + row), x[lane]);
  }
}

void filter(std::int32_t order, std::int32_t* lanes, std::int64_t length, std::int32_t block,
            const LaneFilters& filters) {
  if (order <= 4) return filter<4>(lanes, length, block, filters);
  if (order <= 8) return filter<8>(lanes, length, block, filters);
  if (order <= 12) return filter<12>(lanes, length, block, filters);
  if (order <= 16) return filter<16>(lanes, length, block, filters);
  filter<32>(lanes, length, block, filters);
}

#endif

struct ToFloat {
  float scale;
  float operator()(std::int32_t sample) const { return static_cast<float>(sample) * scale; }
};
struct ToInt32 {
  int shift;
  std::int32_t operator()(std::int32_t sample) const {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(sample) << shift);
  }
};
struct ToInt16 {
  int shift;
  std::int16_t operator()(std::int32_t sample) const {
    return static_cast<std::int16_t>(static_cast<std::int32_t>(static_cast<std::uint32_t>(sample) << shift) >> 16);
  }
};

// Whether all samples fit `bits` bits.
bool in_range(const std::int32_t* samples, std::int32_t count, std::int32_t bits) {
  const std::uint32_t limit = 1u << (bits - 1);
  std::uint32_t high = 0;
  for (std::int32_t i = 0; i < count; ++i) high |= (static_cast<std::uint32_t>(samples[i]) + limit) & ~(2 * limit - 1);
  return high == 0;
}

// A frame whose residuals are in the lanes from `lane` on.
struct Frame {
  FlacRun* run;
  FrameHeader header;
  std::int64_t sample;  // the first, in the file
  int lane;
};

class Decoder {
 public:
  Decoder(std::int32_t* lanes, std::int64_t length) : lanes_(lanes), length_(length) {}

  void add(FlacRun& run) {
    const Error error = read(run);
    if (error == Error::ok) return;
    flush();
    // Errors of frames before, which are found later, come first.
    if (run.error == Error::ok) run.error = error;
  }

  // Predicts the frames that are waiting, and writes their samples.
  void flush() {
    predict();
    for (int i = 0; i < waiting_; ++i) {
      Frame& frame = frames_[i];
      if (!write(frame) && frame.run->error == Error::ok) frame.run->error = Error::bad_subframe;
    }
    waiting_ = used_ = 0;
  }

 private:
  std::int32_t* lane(int index) const { return lanes_ + index * length_; }

  Error read(FlacRun& run) {
    const flac::Stream& stream = run.stream;
    const std::int64_t end = run.start + run.count;
    std::int64_t byte = run.first_byte, sample = run.first_sample;
    FrameHeader before{};
    while (sample < end) {
      if (byte >= run.size) return Error::truncated;
      FrameHeader header;
      std::int64_t length = 0;
      Error error = flac::read_frame_header(run.file + byte, run.size - byte, stream, header, length);
      if (error != Error::ok) return error;
      const bool first = sample == run.first_sample;
      if (!first && header.variable != before.variable) return Error::bad_header;
      const std::int64_t expected = header.variable                  ? sample
                                    : !first                         ? before.number + 1
                                    : sample % stream.max_block == 0 ? sample / stream.max_block
                                                                     : -1;
      if (header.number != expected) return Error::bad_header;
      if (run.exact && sample + header.block > end) return Error::wrong_length;
      if (used_ + header.channels > kFlacLanes) flush();

      BitReader reader(run.file + byte, run.size - byte);
      reader.next = length;
      for (int channel = 0; channel < header.channels; ++channel) {
        const int index = used_ + channel;
        error = flac::read_subframe(reader, header.block, flac::channel_bits(header, channel), lane(index), 1,
                                    predictors_[index], FastRice());
        blocks_[index] = header.block;
        if (error != Error::ok) return error;
      }
      reader.align_to_byte();
      const std::int64_t bytes = reader.byte_position();
      const std::uint32_t stored = reader.read(16);
      if (reader.overrun) return Error::truncated;
      if (run.crc && crc16(run.file + byte, bytes) != stored) return Error::bad_crc;
      // Frames before the wanted samples too: their samples must be in range.
      frames_[waiting_++] = {&run, header, sample, used_};
      used_ += header.channels;
      byte += bytes + 2;
      sample += header.block;
      before = header;
    }
    if (run.end_byte >= 0 && byte != run.end_byte) return Error::bad_header;
    // Only the frames tell how long a file is whose header does not.
    const bool longer = run.exact && stream.samples == 0 && flac::frame_follows(run.file, run.size, stream, byte);
    return longer ? Error::wrong_length : Error::ok;
  }

  void predict() {
#if defined(__AVX2__)
    LaneFilters filters{};
    std::int32_t order = 0, block = 0;
    int predicted = 0;
    bool together[kFlacLanes] = {};
    for (int i = 0; i < used_; ++i) {
      const Predictor& predictor = predictors_[i];
      together[i] = predictor.order > 0 && flac::fits_32_bits(predictor);
      if (!together[i]) continue;
      ++predicted;
      order = order < predictor.order ? predictor.order : order;
      block = block < blocks_[i] ? blocks_[i] : block;
    }
    for (int i = 0; i < used_; ++i) {
      const Predictor& predictor = predictors_[i];
      // A single one is faster alone.
      if (!together[i] || predicted == 1) {
        if (flac::predict(predictor, blocks_[i], lane(i), 1) != Error::ok) lane(i)[0] = kOutOfRange;
        continue;
      }
      filters.shifts[i] = predictor.shift;
      for (int j = 0; j < predictor.order; ++j) filters.coefficients[j][i] = predictor.coefficients[j];
      // The first samples are not predicted: in their place, the residuals that give them.
      for (int t = predictor.order - 1; t > 0; --t) {
        std::int32_t sum = 0;
        for (int j = 0; j < t; ++j)
          sum = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum) +
                                          static_cast<std::uint32_t>(predictor.coefficients[j]) *
                                              static_cast<std::uint32_t>(lane(i)[t - 1 - j]));
        lane(i)[t] = static_cast<std::int32_t>(static_cast<std::uint32_t>(lane(i)[t]) -
                                               static_cast<std::uint32_t>(sum >> predictor.shift));
      }
    }
    if (predicted > 1) filter(order, lanes_, length_, block, filters);
#else
    for (int i = 0; i < used_; ++i)
      if (flac::predict(predictors_[i], blocks_[i], lane(i), 1) != Error::ok) lane(i)[0] = kOutOfRange;
#endif
  }

  // Writes the wanted samples of a frame. Whether all are in range.
  bool write(const Frame& frame) {
    const FlacRun& run = *frame.run;
    const std::int32_t bits = frame.header.bits;
    switch (run.dtype) {
      case SampleType::float32:
        return write(frame, static_cast<float*>(run.output), ToFloat{flac::float_scale(bits)});
      case SampleType::int32:
        return write(frame, static_cast<std::int32_t*>(run.output), ToInt32{32 - bits});
      default:
        return write(frame, static_cast<std::int16_t*>(run.output), ToInt16{32 - bits});
    }
  }

  template <class Sample, class Convert>
  bool write(const Frame& frame, Sample* output, const Convert& convert) {
    const FlacRun& run = *frame.run;
    const FrameHeader& header = frame.header;
    const std::int32_t channels = header.channels, block = header.block;
    for (int channel = 0; channel < channels; ++channel) {
      const Predictor& predictor = predictors_[frame.lane + channel];
      std::int32_t* samples = lane(frame.lane + channel);
      if (!in_range(samples, block, predictor.bits)) return false;
      for (std::int32_t i = 0; i < block && predictor.wasted; ++i)
        samples[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(samples[i]) << predictor.wasted);
    }
    if (frame.sample + block <= run.start) return true;
    const std::int64_t skipped = frame.sample < run.start ? run.start - frame.sample : 0;
    const std::int64_t left = run.start + run.count - frame.sample;
    const std::int64_t end = left < block ? left : block;
    if (header.stereo && !decorrelate(header, lane(frame.lane) + skipped, static_cast<std::int32_t>(end - skipped)))
      return false;
    Sample* to = output + (frame.sample + skipped - run.start) * channels;
    const std::int32_t* first = lane(frame.lane) + skipped;
    const std::int64_t count = end - skipped;
    if (channels == 1) {
      for (std::int64_t i = 0; i < count; ++i) to[i] = convert(first[i]);
    } else if (channels == 2) {
      const std::int32_t* second = first + length_;
      for (std::int64_t i = 0; i < count; ++i) {
        to[2 * i] = convert(first[i]);
        to[2 * i + 1] = convert(second[i]);
      }
    } else {
      for (int channel = 0; channel < channels; ++channel)
        for (std::int64_t i = 0; i < count; ++i) to[i * channels + channel] = convert(first[channel * length_ + i]);
    }
    return true;
  }

  // Two channels, the second a row below the first, to left and right. Whether all are in range.
  bool decorrelate(const FrameHeader& header, std::int32_t* first, std::int32_t count) {
    std::int32_t* second = first + length_;
    switch (header.stereo) {
      case 8:
        for (std::int32_t i = 0; i < count; ++i) second[i] = first[i] - second[i];
        break;
      case 9:
        for (std::int32_t i = 0; i < count; ++i) first[i] += second[i];
        break;
      default:
        for (std::int32_t i = 0; i < count; ++i) {
          const std::int32_t middle = 2 * first[i] + (second[i] & 1), side = second[i];
          first[i] = (middle + side) >> 1;
          second[i] = (middle - side) >> 1;
        }
    }
    return in_range(first, count, header.bits) && in_range(second, count, header.bits);
  }

  static constexpr std::int32_t kOutOfRange = -0x7FFFFFFF - 1;  // in any number of bits

  std::int32_t* lanes_;
  std::int64_t length_;
  Predictor predictors_[kFlacLanes];
  std::int32_t blocks_[kFlacLanes];
  Frame frames_[kFlacLanes];
  int used_ = 0, waiting_ = 0;
};

}  // namespace

void decode_flac_runs(FlacRun* runs, std::int64_t count, std::int32_t* lanes, std::int64_t lane_length) {
  Decoder decoder(lanes, lane_length);
  for (std::int64_t i = 0; i < count; ++i) decoder.add(runs[i]);
  decoder.flush();
}

}  // namespace slap_fast::SLAP_FAST_ISA
