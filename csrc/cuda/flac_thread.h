// What a thread of the FLAC kernel does. Runs on a GPU and, thread by thread in any order, on a CPU (tests).
//
// Files are split among threads by their samples, because the grid must not depend on what is in device memory: file i
// has one thread per kFlacTile samples begun, and thread j of n decodes the frames of seek points j, j + n, ... The
// points are proven, not trusted: each frame must be where the table says, with that number, and end where the next
// begins. The last thread of a file to finish looks at the outcome. If a thread failed, or there is no usable table, it
// decodes the file from its start, alone, and its error is the one that sequential decoding finds.
#pragma once

#include <cstdint>

#include "cpu/flac_decode.h"
#include "flac/frame.h"
#include "flac/md5.h"
#include "flac/stream_header.h"

SLAP_FAST_FLAC_BEGIN

constexpr std::int64_t kFlacTile = 4096;

// Of a file, zeros at first.
struct FileState {
  std::uint32_t finished;  // threads
  std::uint32_t failed;
};

struct ThreadArguments {
  FlacBatch batch;
  std::int64_t bytes, rows;
  FileState* states;    // [files]
  std::int32_t* coded;  // [rows, 2], for stereo decorrelation where the output is int16; else null
};

SLAP_FAST_FLAC_INLINE std::int64_t clamp(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Threads that all files together have.
SLAP_FAST_FLAC_INLINE std::int64_t flac_threads(std::int64_t files, std::int64_t rows) {
  return files > 0 ? rows / kFlacTile + files : 0;
}

// Wanted samples of a frame to the output.
struct RowSink {
  const ThreadArguments* arguments;
  const FrameHeader* header;
  std::int64_t row;         // of the output, for the first sample of the frame; may be before it
  std::int64_t begin, end;  // rows of the file

  SLAP_FAST_FLAC_INLINE bool operator()(std::int32_t channel, std::int32_t i, std::int32_t sample) const {
    const std::int64_t at = row + i;
    if (at < begin || at >= end) return true;
    const std::int32_t channels = header->channels;
    if (header->stereo == 0) {
      put(at * channels + channel, sample);
      return true;
    }
    // The first channel waits as an integer for the second.
    const std::int64_t place = 2 * at;
    auto* waiting =
        arguments->coded ? arguments->coded + place : static_cast<std::int32_t*>(arguments->batch.output) + place;
    if (channel == 0) {
      copy(waiting, sample);
      return true;
    }
    std::int32_t first = 0;
    copy(&first, *waiting);
    const Pair pair = left_and_right(header->stereo, first, sample);
    const std::int64_t limit = std::int64_t{1} << (header->bits - 1);
    if (pair.left < -limit || pair.left >= limit || pair.right < -limit || pair.right >= limit) return false;
    put(place, static_cast<std::int32_t>(pair.left));
    put(place + 1, static_cast<std::int32_t>(pair.right));
    return true;
  }

 private:
  // Floats and integers share memory.
  SLAP_FAST_FLAC_INLINE static void copy(std::int32_t* to, const std::int32_t& from) {
#if defined(__CUDA_ARCH__)
    *to = from;
#else
    std::memcpy(to, &from, sizeof(from));
#endif
  }
  SLAP_FAST_FLAC_INLINE void put(std::int64_t place, std::int32_t sample) const {
    const std::int32_t bits = header->bits;
    switch (arguments->batch.dtype) {
      case SampleType::float32:
        static_cast<float*>(arguments->batch.output)[place] = static_cast<float>(sample) * float_scale(bits);
        return;
      case SampleType::int32:
        static_cast<std::int32_t*>(arguments->batch.output)[place] = to_int32(sample, bits);
        return;
      default:
        static_cast<std::int16_t*>(arguments->batch.output)[place] = to_int16(sample, bits);
    }
  }
};

// A file of the batch. Offsets may be anything: they are clamped to the memory.
struct ThreadFile {
  const std::uint8_t* data;
  std::int64_t size;
  std::int64_t begin, end;  // rows
  std::int64_t start;       // first sample wanted
  bool whole;
  Stream stream;

  SLAP_FAST_FLAC_INLINE ThreadFile(const ThreadArguments& arguments, std::int64_t file) {
    const FlacBatch& batch = arguments.batch;
    const std::int64_t first = clamp(batch.offsets[file], 0, arguments.bytes);
    data = batch.data + first;
    size = clamp(batch.offsets[file + 1], first, arguments.bytes) - first;
    begin = clamp(batch.cu_seqlens[file], 0, arguments.rows);
    end = clamp(batch.cu_seqlens[file + 1], begin, arguments.rows);
    whole = batch.starts == nullptr;
    start = whole ? 0 : batch.starts[file];
  }

  SLAP_FAST_FLAC_INLINE std::int64_t count() const { return end - begin; }

  // Reads the header; the same errors as on a CPU.
  SLAP_FAST_FLAC_INLINE Error open(std::int32_t channels) {
    const Error error = read_stream_header(data, size, stream);
    if (error != Error::ok) return error;
    if (stream.samples && !can_hold(stream, size, 0, stream.samples)) return Error::wrong_length;
    if (stream.channels != channels) return Error::wrong_channels;
    if (start < 0) return Error::wrong_length;
    if (stream.samples) {
      if (whole ? count() != stream.samples : start > stream.samples || count() > stream.samples - start)
        return Error::wrong_length;
    } else if (whole && count() == 0 && stream.first_frame < size) {
      return Error::unknown_length;
    } else if (!can_hold(stream, size, start, count())) {
      return Error::wrong_length;
    }
    return Error::ok;
  }

  // Whether a frame at `byte` has variable blocks by its header, as all that belong together must.
  SLAP_FAST_FLAC_INLINE bool variable_at(std::int64_t byte) const { return byte + 1 < size && (data[byte + 1] & 1); }

  // Decodes the frame at `byte`, whose first sample is `sample`. `byte` moves behind it, `header` becomes its own.
  SLAP_FAST_FLAC_NOINLINE Error frame(const ThreadArguments& arguments, std::int64_t sample, std::int64_t expected,
                                      bool variable, std::int64_t& byte, FrameHeader& header) const {
    if (byte >= size) return Error::truncated;
    std::int64_t length = 0;
    const std::uint8_t* at = data + byte;
    Error error = read_frame_header(at, size - byte, stream, header, length);
    if (error != Error::ok) return error;
    if (header.variable != variable || header.number != (variable ? sample : expected)) return Error::bad_header;
    if (whole && sample + header.block > count()) return Error::wrong_length;
    BitReader reader(at, size - byte);
    reader.next = length;
    const RowSink sink{&arguments, &header, begin + sample - start, begin, end};
    error = stream_frame(reader, header, arguments.batch.verify == Verify::none ? nullptr : at, sink);
    byte += reader.byte_position();
    return error;
  }

  // The frames from one on, up to the last that is wanted.
  SLAP_FAST_FLAC_INLINE Error sequential(const ThreadArguments& arguments, std::int64_t byte,
                                         std::int64_t sample) const {
    const bool numbered = sample % stream.max_block == 0, variable = variable_at(byte);
    for (std::int64_t number = numbered ? sample / stream.max_block : -1; sample < start + count(); ++number) {
      FrameHeader header;
      const Error error = frame(arguments, sample, number, variable, byte, header);
      if (error != Error::ok) return error;
      sample += header.block;
    }
    // Only the frames tell how long a file is whose header does not.
    const bool longer = whole && stream.samples == 0 && frame_follows(data, size, stream, byte);
    return longer ? Error::wrong_length : Error::ok;
  }

  // The last point at or before `start`, plus one; 0: there is none.
  SLAP_FAST_FLAC_INLINE std::int64_t points_before_start() const {
    std::int64_t low = 0, high = stream.points;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (seek_point(data, stream, middle).sample <= start)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  // From the last point before a crop, as on a CPU; if that fails, from the start of the file.
  SLAP_FAST_FLAC_INLINE Error alone(const ThreadArguments& arguments) const {
    const std::int64_t points = whole ? 0 : points_before_start();
    if (points > 0) {
      const Point point = seek_point(data, stream, points - 1);
      if (sequential(arguments, point.byte, point.sample) == Error::ok) return Error::ok;
    }
    return sequential(arguments, stream.first_frame, 0);
  }

  // The frames of points `first` + thread, + thread + threads, ... that hold wanted samples. Whether they prove the
  // points.
  SLAP_FAST_FLAC_INLINE bool by_points(const ThreadArguments& arguments, std::int64_t thread,
                                       std::int64_t threads) const {
    if (stream.samples == 0 || stream.points == 0) return false;
    const std::int64_t low = points_before_start();
    if (low == 0) return false;
    const bool variable = variable_at(seek_point(data, stream, low - 1).byte);
    for (std::int64_t index = low - 1 + thread; index < stream.points; index += threads) {
      const Point point = seek_point(data, stream, index);
      const bool last = index + 1 == stream.points;
      const Point next = last ? Point{stream.samples, 0, 0} : seek_point(data, stream, index + 1);
      // If the samples fell again, other threads would write wanted ones from points that nothing proves.
      if (point.sample >= start + count()) return next.sample >= point.sample;
      if (point.sample == 0 && point.byte != stream.first_frame) return false;
      if (point.sample % stream.max_block != 0 && !variable) return false;
      std::int64_t byte = point.byte;
      FrameHeader header;
      if (frame(arguments, point.sample, point.sample / stream.max_block, variable, byte, header) != Error::ok)
        return false;
      if (point.sample + header.block != next.sample || (!last && byte != next.byte)) return false;
    }
    return true;
  }

  // The last thread of the file: decides, repairs, clears.
  SLAP_FAST_FLAC_INLINE void finish(const ThreadArguments& arguments, std::int64_t file, Error error,
                                    bool failed) const {
    const FlacBatch& batch = arguments.batch;
    if (error == Error::ok && failed) error = alone(arguments);
    if (error == Error::ok && batch.verify == Verify::md5 && has_md5(stream.md5) && batch.dtype != SampleType::int16) {
      const std::int64_t place = begin * batch.channels, samples = count() * batch.channels;
      const bool same =
          batch.dtype == SampleType::float32
              ? md5_matches(static_cast<const float*>(batch.output) + place, samples, stream.bits, stream.md5)
              : md5_matches(static_cast<const std::int32_t*>(batch.output) + place, samples, stream.bits, stream.md5);
      if (!same) error = Error::bad_md5;
    }
    if (error != Error::ok) {
      for (std::int64_t i = begin * batch.channels; i < end * batch.channels; ++i) {
        if (batch.dtype == SampleType::int16)
          static_cast<std::int16_t*>(batch.output)[i] = 0;
        else if (batch.dtype == SampleType::int32)
          static_cast<std::int32_t*>(batch.output)[i] = 0;
        else
          static_cast<float*>(batch.output)[i] = 0.0f;
      }
    }
    batch.errors[file] = static_cast<std::int32_t>(error);
  }
};

// `atomics` counts threads of a file: finish(state, failed) marks one more as done, and returns how many were before.
template <class Atomics>
SLAP_FAST_FLAC_INLINE void flac_thread(const ThreadArguments& arguments, std::int64_t index, Atomics& atomics) {
  const FlacBatch& batch = arguments.batch;
  if (index >= flac_threads(batch.files, arguments.rows)) return;
  // File i starts at thread cu_seqlens[i] / kFlacTile + i.
  const auto first_thread = [&](std::int64_t file) {
    return clamp(batch.cu_seqlens[file], 0, arguments.rows) / kFlacTile + file;
  };
  std::int64_t low = 0, high = batch.files - 1;
  while (low < high) {
    const std::int64_t middle = low + (high - low + 1) / 2;
    if (first_thread(middle) <= index)
      low = middle;
    else
      high = middle - 1;
  }
  const std::int64_t thread = index - first_thread(low);
  const std::int64_t threads =
      (low + 1 < batch.files ? first_thread(low + 1) : flac_threads(batch.files, arguments.rows)) - first_thread(low);
  if (thread < 0 || thread >= threads) return;  // malformed offsets
  ThreadFile file(arguments, low);
  const Error error = file.open(batch.channels);
  const bool done = error == Error::ok && (file.count() == 0 || file.by_points(arguments, thread, threads));
  FileState& state = arguments.states[low];
  if (atomics.finish(state, !done) + 1 == static_cast<std::uint32_t>(threads))
    file.finish(arguments, low, error, atomics.failed(state));
}

SLAP_FAST_FLAC_END
