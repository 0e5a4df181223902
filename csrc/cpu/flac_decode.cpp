#include "flac_decode.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "flac/frame.h"
#include "flac/md5.h"
#include "flac/stream_header.h"
#include "flac_decode_kernel.h"
#include "isa.h"
#include "packed_offsets.h"
#include "parallel.h"

namespace slap_fast {
namespace {

using flac::Error;
using flac::SampleType;
using flac::Stream;

using Kernel = void (*)(FlacRun*, std::int64_t, std::int32_t*, std::int64_t);

Kernel chosen_kernel() { SLAP_FAST_DISPATCH(decode_flac_runs); }

// Samples that a task has, if there are as many: then threads finish at about the same time, and a task has frames for
// all lanes.
constexpr std::int64_t kTaskSamples = 1 << 19;

std::int64_t sample_bytes(SampleType dtype) { return dtype == SampleType::int16 ? 2 : 4; }

// The files of a batch as runs of frames, decoded by threads.
class Work {
 public:
  Work(const FlacBatch& batch, int threads) : batch_(batch), threads_(threads) {}

  void run() {
    streams_.resize(static_cast<std::size_t>(batch_.files));
    for (std::int64_t file = 0; file < batch_.files; ++file) {
      const Error error = plan(file);
      batch_.errors[file] = static_cast<std::int32_t>(error);
    }
    decode();
    // Where seek points were used and something is wrong, the points may be: once more from the start.
    std::vector<bool> again(static_cast<std::size_t>(batch_.files));
    std::vector<Owned> done;
    done.swap(runs_);
    for (const Owned& owned : done) {
      if (owned.run.error == Error::ok) continue;
      if (owned.by_point)
        again[static_cast<std::size_t>(owned.file)] = true;
      else
        batch_.errors[owned.file] = static_cast<std::int32_t>(owned.run.error);
    }
    for (std::int64_t file = 0; file < batch_.files; ++file)
      if (again[static_cast<std::size_t>(file)]) runs_.push_back({whole(file), file, false});
    decode();
    for (const Owned& owned : runs_) batch_.errors[owned.file] = static_cast<std::int32_t>(owned.run.error);
    if (batch_.verify == flac::Verify::md5) check_sums();
    for (std::int64_t file = 0; file < batch_.files; ++file)
      if (batch_.errors[file] != 0 && rows(file) > 0)
        std::memset(output(file, 0), 0, static_cast<std::size_t>(rows(file) * batch_.channels * width()));
  }

 private:
  struct Owned {
    FlacRun run;
    std::int64_t file;
    bool by_point;  // starts or ends at a seek point
  };

  std::int64_t rows(std::int64_t file) const { return batch_.cu_seqlens[file + 1] - batch_.cu_seqlens[file]; }
  std::int64_t width() const { return sample_bytes(batch_.dtype); }
  const std::uint8_t* bytes(std::int64_t file) const { return batch_.data + batch_.offsets[file]; }
  std::int64_t size(std::int64_t file) const { return batch_.offsets[file + 1] - batch_.offsets[file]; }
  char* output(std::int64_t file, std::int64_t row) const {
    return static_cast<char*>(batch_.output) + (batch_.cu_seqlens[file] + row) * batch_.channels * width();
  }

  // Adds the runs of a file, or says why it has none.
  Error plan(std::int64_t file) {
    Stream& stream = streams_[static_cast<std::size_t>(file)];
    const Error error = flac_info(bytes(file), size(file), stream);
    if (error != Error::ok && error != Error::unknown_length) return error;
    if (stream.channels != batch_.channels) return Error::wrong_channels;
    const std::int64_t count = rows(file), start = batch_.starts ? batch_.starts[file] : 0;
    if (start < 0) return Error::wrong_length;
    if (stream.samples) {
      // Without overflow: both are at least 0.
      if (batch_.starts ? start > stream.samples || count > stream.samples - start : count != stream.samples)
        return Error::wrong_length;
    } else if (count == 0 && error == Error::unknown_length && !batch_.starts) {
      return error;
    } else if (!flac::can_hold(stream, size(file), start, count)) {
      return Error::wrong_length;
    }
    if (count == 0) return Error::ok;
    if (batch_.starts)
      plan_from_point(file, start);
    else if (threads_ > 1 && count > kTaskSamples && has_all_points(file))
      split(file);
    else
      runs_.push_back({whole(file), file, false});
    return Error::ok;
  }

  // All frames up to the last that is wanted.
  FlacRun whole(std::int64_t file) const {
    const Stream& stream = streams_[static_cast<std::size_t>(file)];
    const std::int64_t start = batch_.starts ? batch_.starts[file] : 0;
    return {bytes(file),
            size(file),
            stream,
            stream.first_frame,
            0,
            start,
            rows(file),
            batch_.starts == nullptr,
            -1,
            batch_.verify != flac::Verify::none,
            batch_.dtype,
            output(file, 0),
            Error::ok};
  }

  flac::Point point(std::int64_t file, std::int64_t index) const {
    return flac::seek_point(bytes(file), streams_[static_cast<std::size_t>(file)], index);
  }

  // The frames from the last seek point at or before `start` on.
  void plan_from_point(std::int64_t file, std::int64_t start) {
    std::int64_t low = 0, high = streams_[static_cast<std::size_t>(file)].points;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (point(file, middle).sample <= start)
        low = middle + 1;
      else
        high = middle;
    }
    FlacRun run = whole(file);
    if (low > 0) {
      const flac::Point found = point(file, low - 1);
      run.first_byte = found.byte;
      run.first_sample = found.sample;
    }
    const bool by_point = run.first_sample > 0 || run.first_byte != run.stream.first_frame;
    runs_.push_back({run, file, by_point});
  }

  // Whether the points can be those of all frames; they are not trusted, but a wrong table would be of no use.
  bool has_all_points(std::int64_t file) const {
    const Stream& stream = streams_[static_cast<std::size_t>(file)];
    if (stream.samples == 0 || stream.points < 2) return false;
    flac::Point before = point(file, 0);
    if (before.sample != 0 || before.byte != stream.first_frame) return false;
    for (std::int64_t i = 1; i < stream.points; ++i) {
      const flac::Point next = point(file, i);
      if (next.sample != before.sample + before.samples || next.byte <= before.byte) return false;
      before = next;
    }
    return before.sample + before.samples == stream.samples && before.byte < size(file);
  }

  // Runs of about kTaskSamples, each of which must end where the next begins.
  void split(std::int64_t file) {
    const Stream& stream = streams_[static_cast<std::size_t>(file)];
    const FlacRun all = whole(file);
    flac::Point begin = point(file, 0);
    for (std::int64_t i = 1; i <= stream.points; ++i) {
      const bool last = i == stream.points;
      const flac::Point end = last ? flac::Point{stream.samples, -1, 0} : point(file, i);
      if (!last && end.sample - begin.sample < kTaskSamples) continue;
      FlacRun run = all;
      run.first_byte = begin.byte;
      run.first_sample = run.start = begin.sample;
      run.count = end.sample - begin.sample;
      run.end_byte = end.byte;
      run.output = output(file, begin.sample);
      runs_.push_back({run, file, true});
      begin = end;
    }
  }

  void decode() {
    std::vector<FlacRun> runs;
    runs.reserve(runs_.size());
    std::int64_t total = 0, block = 0;
    for (const Owned& owned : runs_) {
      runs.push_back(owned.run);
      total += owned.run.count;
      block = std::max<std::int64_t>(block, owned.run.stream.max_block);
    }
    if (runs.empty()) return;
    const std::int64_t share = std::min(kTaskSamples, total / (4 * std::max(threads_, 1)));
    std::vector<std::int64_t> tasks{0};
    std::int64_t gathered = 0;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      gathered += runs[i].count;
      if (gathered < share && i + 1 < runs.size()) continue;
      tasks.push_back(static_cast<std::int64_t>(i) + 1);
      gathered = 0;
    }
    const auto count = static_cast<std::int64_t>(tasks.size()) - 1;
    const int threads = static_cast<int>(std::clamp<std::int64_t>(threads_, 1, count));
    const Kernel kernel = chosen_kernel();
    const std::int64_t length = flac_lane_length(block);
    std::vector<std::int32_t> lanes(static_cast<std::size_t>(threads * kFlacLanes * length));
    parallel_for(count, threads, [&](std::int64_t task, int thread) {
      kernel(runs.data() + tasks[static_cast<std::size_t>(task)],
             tasks[static_cast<std::size_t>(task) + 1] - tasks[static_cast<std::size_t>(task)],
             lanes.data() + thread * kFlacLanes * length, length);
    });
    for (std::size_t i = 0; i < runs.size(); ++i) runs_[i].run.error = runs[i].error;
  }

  void check_sums() {
    parallel_for(batch_.files, std::max(threads_, 1), [&](std::int64_t file, int) {
      const Stream& stream = streams_[static_cast<std::size_t>(file)];
      if (batch_.errors[file] != 0 || !flac::has_md5(stream.md5)) return;
      const std::int64_t count = rows(file) * batch_.channels;
      const char* samples = output(file, 0);
      const bool same =
          batch_.dtype == SampleType::float32
              ? flac::md5_matches(reinterpret_cast<const float*>(samples), count, stream.bits, stream.md5)
              : flac::md5_matches(reinterpret_cast<const std::int32_t*>(samples), count, stream.bits, stream.md5);
      if (!same) batch_.errors[file] = static_cast<std::int32_t>(Error::bad_md5);
    });
  }

  const FlacBatch& batch_;
  const int threads_;
  std::vector<Stream> streams_;
  std::vector<Owned> runs_;
};

}  // namespace

void decode_flac(const FlacBatch& batch, std::int64_t bytes, std::int64_t rows, int threads) {
  check_offsets("offsets", batch.offsets, batch.files, bytes, "bytes", "data");
  check_offsets("cu_seqlens", batch.cu_seqlens, batch.files, rows, "samples", "the output");
  if (batch.channels < 1 || batch.channels > flac::kMaxChannels)
    throw std::invalid_argument("channels is " + std::to_string(batch.channels) + "; FLAC has 1 to 8");
  if (batch.verify == flac::Verify::md5 && (batch.starts || batch.dtype == SampleType::int16))
    throw std::invalid_argument(
        "MD5 needs all samples with all their bits: "
        "whole files, float32 or int32");
  Work(batch, threads).run();
}

flac::Error flac_info(const std::uint8_t* file, std::int64_t size, flac::Stream& stream) {
  const Error error = flac::read_stream_header(file, size, stream);
  if (error != Error::ok) {
    if (error != Error::unsupported) stream = Stream{};
    return error;
  }
  // A file without samples has no frames.
  if (stream.samples == 0) return stream.first_frame < size ? Error::unknown_length : Error::ok;
  return flac::can_hold(stream, size, 0, stream.samples) ? Error::ok : Error::wrong_length;
}

flac::Error flac_frames(const std::uint8_t* file, std::int64_t size, void (*add)(void*, const flac::Point&),
                        void* context) {
  Stream stream;
  Error error = flac::read_stream_header(file, size, stream);
  if (error != Error::ok) return error;
  std::int64_t byte = stream.first_frame, sample = 0;
  while (byte < size && (stream.samples == 0 || sample < stream.samples)) {
    flac::FrameHeader header;
    std::int64_t length = 0;
    error = flac::read_frame_header(file + byte, size - byte, stream, header, length);
    if (error != Error::ok) return error;
    flac::BitReader reader(file + byte, size - byte);
    reader.next = length;
    error =
        flac::stream_frame(reader, header, file + byte, [](std::int32_t, std::int32_t, std::int32_t) { return true; });
    if (error != Error::ok) return error;
    add(context, {sample, byte, header.block});
    byte += reader.byte_position();
    sample += header.block;
  }
  return stream.samples && sample != stream.samples ? Error::truncated : Error::ok;
}

}  // namespace slap_fast
