// FLAC decoder against itself: SIMD code of every instruction set with any number of threads, and threads of the GPU
// kernel emulated in random order, must give the same samples and errors, whatever the bytes are.
//
//   flac_test decode CASES RESULTS     decodes batches of files; tests/ops/decode_flac writes and reads them
//   flac_test fuzz CASES SEED COUNT    decodes COUNT damaged files
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/flac_decode.h"
#include "cpu/isa.h"
#include "cuda/flac_thread.h"
#include "flac/frame_header.h"

namespace {

using namespace slap_fast;
using Bytes = std::vector<std::uint8_t>;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "failed: %s\n", what.c_str());
  std::exit(1);
}

struct Case {
  std::int32_t channels = 1, dtype = 0, verify = 0, cropped = 0;
  std::vector<Bytes> files;
  std::vector<std::int64_t> starts, counts;
};

struct Result {
  std::vector<std::int32_t> errors;
  Bytes samples;
  bool operator==(const Result& other) const { return errors == other.errors && samples == other.samples; }
};

// Arrays of exactly the sizes that the decoder is told, so that a sanitizer sees an access beside them. Outputs are
// poisoned: samples that are not written would differ between two runs.
class Memory {
 public:
  Memory(const Case& batch, std::uint8_t poison) : batch_(batch), offsets_{0}, cu_seqlens_{0} {
    for (std::size_t i = 0; i < batch.files.size(); ++i) {
      data_.insert(data_.end(), batch.files[i].begin(), batch.files[i].end());
      offsets_.push_back(static_cast<std::int64_t>(data_.size()));
      cu_seqlens_.push_back(cu_seqlens_.back() + batch.counts[i]);
    }
    data_.shrink_to_fit();
    const std::size_t width = batch.dtype == 2 ? 2 : 4;
    result.samples.assign(static_cast<std::size_t>(rows() * batch.channels) * width, poison);
    result.errors.assign(batch.files.size(), -1);
  }
  FlacBatch view() {
    return {data_.data(),
            offsets_.data(),
            static_cast<std::int64_t>(batch_.files.size()),
            batch_.cropped ? batch_.starts.data() : nullptr,
            cu_seqlens_.data(),
            batch_.channels,
            static_cast<flac::SampleType>(batch_.dtype),
            result.samples.data(),
            result.errors.data(),
            static_cast<flac::Verify>(batch_.verify)};
  }
  std::int64_t bytes() const { return offsets_.back(); }
  std::int64_t rows() const { return cu_seqlens_.back(); }

  Result result;

 private:
  const Case& batch_;
  Bytes data_;
  std::vector<std::int64_t> offsets_, cu_seqlens_;
};

Result on_cpu(const Case& batch, Isa isa, int threads) {
  force_isa(isa_name(isa));
  Memory memory(batch, 0xA5);
  decode_flac(memory.view(), memory.bytes(), memory.rows(), threads);
  return std::move(memory.result);
}

struct EmulatedAtomics {
  std::uint32_t finish(flac::FileState& state, bool failed) const {
    state.failed |= failed;
    return state.finished++;
  }
  bool failed(const flac::FileState& state) const { return state.failed; }
};

Result on_emulated_gpu(const Case& batch, std::mt19937_64& random) {
  Memory memory(batch, 0x5A);
  std::vector<flac::FileState> states(batch.files.size());
  std::vector<std::int32_t> coded(batch.dtype == 2 && batch.channels == 2 ? 2 * memory.rows() : 0);
  const flac::ThreadArguments arguments{memory.view(), memory.bytes(), memory.rows(), states.data(),
                                        coded.empty() ? nullptr : coded.data()};
  // A few more than there are, as in the last block of a grid.
  std::vector<std::int64_t> order(flac::flac_threads(arguments.batch.files, arguments.rows) + 5);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  EmulatedAtomics atomics;
  for (std::int64_t index : order) flac::flac_thread(arguments, index, atomics);
  return std::move(memory.result);
}

// `every`: all instruction sets and numbers of threads, not one of them.
Result check(const Case& batch, bool every, std::mt19937_64& random, const std::string& what) {
  const Result expected = on_emulated_gpu(batch, random);
  std::vector<Isa> isas = compiled_isas();
  isas.erase(std::remove_if(isas.begin(), isas.end(), [](Isa isa) { return isa > detected_isa(); }), isas.end());
  std::vector<int> numbers{1, 3};
  if (!every) {
    isas = {isas[random() % isas.size()]};
    numbers = {random() % 8 ? 1 : 3};
  }
  for (Isa isa : isas) {
    for (int threads : numbers) {
      const Result found = on_cpu(batch, isa, threads);
      if (found == expected) continue;
      for (std::size_t i = 0; i < found.errors.size(); ++i)
        if (found.errors[i] != expected.errors[i])
          fail(what + ", file " + std::to_string(i) + ": error " + std::to_string(found.errors[i]) + " on " +
               isa_name(isa) + ", " + std::to_string(expected.errors[i]) + " on the emulated GPU");
      fail(what + ": samples differ on " + isa_name(isa));
    }
  }
  return expected;
}

// ---- files ----

template <class T>
void read(std::FILE* file, T* values, std::size_t count) {
  if (std::fread(values, sizeof(T), count, file) != count) fail("the file of cases ends early");
}

std::vector<Case> read_cases(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (!file) fail(std::string("cannot open ") + path);
  std::int32_t cases = 0;
  read(file, &cases, 1);
  std::vector<Case> found(static_cast<std::size_t>(cases));
  for (Case& batch : found) {
    std::int32_t head[5];
    read(file, head, 5);
    batch.channels = head[0];
    batch.dtype = head[1];
    batch.verify = head[2];
    batch.cropped = head[3];
    const auto count = static_cast<std::size_t>(head[4]);
    std::vector<std::int64_t> sizes(count);
    batch.starts.resize(count);
    batch.counts.resize(count);
    read(file, sizes.data(), count);
    read(file, batch.starts.data(), count);
    read(file, batch.counts.data(), count);
    for (std::int64_t size : sizes) {
      batch.files.emplace_back(static_cast<std::size_t>(size));
      read(file, batch.files.back().data(), static_cast<std::size_t>(size));
    }
  }
  std::fclose(file);
  return found;
}

void decode(const char* cases, const char* results) {
  std::FILE* file = std::fopen(results, "wb");
  if (!file) fail(std::string("cannot open ") + results);
  std::mt19937_64 random(1);
  int number = 0;
  for (const Case& batch : read_cases(cases)) {
    const Result result = check(batch, true, random, "batch " + std::to_string(number++));
    std::fwrite(result.errors.data(), 4, result.errors.size(), file);
    std::fwrite(result.samples.data(), 1, result.samples.size(), file);
  }
  std::fclose(file);
}

// ---- fuzzing ----

// Frame headers with a wrong CRC-8 get the right one, so that damage goes deeper than the header.
void repair_headers(Bytes& bytes) {
  flac::Stream stream;
  if (flac::read_stream_header(bytes.data(), static_cast<std::int64_t>(bytes.size()), stream) != flac::Error::ok)
    return;
  for (std::size_t at = static_cast<std::size_t>(stream.first_frame); at + 6 < bytes.size(); ++at) {
    if (bytes[at] != 0xFF || (bytes[at + 1] & 0xFE) != 0xF8) continue;
    flac::FrameHeader header;
    std::int64_t length = 0;
    if (flac::read_frame_header(bytes.data() + at, static_cast<std::int64_t>(bytes.size() - at), stream, header,
                                length) == flac::Error::bad_crc)
      bytes[at + static_cast<std::size_t>(length) - 1] = flac::crc8(bytes.data() + at, length - 1);
  }
}

void damage(Bytes& bytes, const Bytes& other, std::mt19937_64& random) {
  const auto below = [&](std::size_t bound) {
    return static_cast<std::size_t>(random() % std::max<std::size_t>(bound, 1));
  };
  for (std::uint64_t times = 1 + random() % 4; times > 0 && !bytes.empty(); --times) {
    const std::size_t at = random() % 3 ? below(bytes.size()) : below(std::min<std::size_t>(bytes.size(), 80));
    switch (random() % 8) {
      case 0:
      case 1:
      case 2:
        bytes[at] ^= static_cast<std::uint8_t>(1u << random() % 8);
        break;
      case 3:
        bytes[at] = static_cast<std::uint8_t>(random());
        break;
      case 4:
        std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                  bytes.begin() + static_cast<std::ptrdiff_t>(std::min(bytes.size(), at + 1 + below(16))),
                  random() % 2 ? 0x00 : 0xFF);
        break;
      case 5:
        bytes.resize(at);
        break;
      case 6: {  // a piece of another file
        const std::size_t from = below(other.size()), count = std::min(other.size() - from, below(64));
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), other.begin() + static_cast<std::ptrdiff_t>(from),
                     other.begin() + static_cast<std::ptrdiff_t>(from + count));
        break;
      }
      default:
        bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                    bytes.begin() + static_cast<std::ptrdiff_t>(std::min(bytes.size(), at + below(8))));
    }
  }
  if (random() % 4) repair_headers(bytes);
  bytes.shrink_to_fit();
}

void fuzz(const char* path, std::uint64_t seed, std::int64_t count) {
  const std::vector<Case> cases = read_cases(path);
  std::mt19937_64 random(seed);
  std::int64_t done = 0, kinds[16] = {};
  while (done < count) {
    Case batch = cases[random() % cases.size()];
    const Case& others = cases[random() % cases.size()];
    batch.verify = random() % 4 ? 0 : static_cast<std::int32_t>(random() % 3);
    batch.dtype = static_cast<std::int32_t>(random() % (batch.verify == 2 ? 2 : 3));
    batch.cropped = batch.verify != 2 && random() % 4 == 0;
    if (random() % 4 == 0) {  // alone: a sanitizer sees what is read beside it
      const std::size_t kept = random() % batch.files.size();
      batch.files = {batch.files[kept]};
      batch.counts = {batch.counts[kept]};
      batch.starts = {0};
    }
    for (std::size_t i = 0; i < batch.files.size(); ++i) {
      batch.starts[i] = 0;
      if (batch.cropped) {
        batch.starts[i] = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(batch.counts[i] + 1));
        batch.counts[i] -= batch.starts[i];
      }
      if (random() % 8 == 0) continue;  // intact among damaged ones
      damage(batch.files[i], others.files[random() % others.files.size()], random);
      flac::Stream stream;
      // What the header says now, as a caller without a length would expect.
      const bool read =
          flac_info(batch.files[i].data(), static_cast<std::int64_t>(batch.files[i].size()), stream) == flac::Error::ok;
      if (read && !batch.cropped && stream.samples <= 20000 && random() % 2) batch.counts[i] = stream.samples;
    }
    const Result result =
        check(batch, false, random, "input " + std::to_string(done) + " of seed " + std::to_string(seed));
    for (std::int32_t error : result.errors) ++kinds[error];
    done += static_cast<std::int64_t>(batch.files.size());
  }
  std::printf("%lld inputs; errors by kind:", static_cast<long long>(done));
  for (int kind = 0; kind <= 10; ++kind) std::printf(" %d: %lld", kind, static_cast<long long>(kinds[kind]));
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "decode" && argc == 4)
    decode(argv[2], argv[3]);
  else if (mode == "fuzz" && argc == 5)
    fuzz(argv[2], std::strtoull(argv[3], nullptr, 10), std::strtoll(argv[4], nullptr, 10));
  else
    fail("usage: flac_test decode CASES RESULTS | fuzz CASES SEED COUNT");
}
