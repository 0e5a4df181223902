// Packing of a batch for the GPU: files FOLDER/0 to FOLDER/N-1 are packed, decoded on the CPU by runs, and their
// samples written to FOLDER/i.decoded.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "dali/flac_packing.h"

using namespace slap_fast;

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const std::string folder = std::string(arguments[1]) + "/";
  const int files = std::stoi(arguments[2]);
  std::vector<std::vector<std::uint8_t>> contents;
  for (int i = 0; i < files; ++i) {
    std::ifstream file(folder + std::to_string(i), std::ios::binary);
    contents.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  const dali_plugin::ClipLimits limits;
  std::vector<dali_plugin::Clip> clips;
  for (const auto& content : contents)
    clips.push_back(dali_plugin::read_clip(content.data(), static_cast<std::int64_t>(content.size()), limits));

  const dali_plugin::Packing packing(clips);
  std::vector<std::uint8_t> bytes(packing.bytes);
  std::vector<float> output;
  std::vector<std::size_t> starts;
  for (int i = 0; i < files; ++i) {
    if (clips[i].error == flac::Error::ok)
      std::copy(contents[i].begin(), contents[i].end(), bytes.begin() + packing.starts[i]);
    starts.push_back(output.size());
    output.resize(output.size() + clips[i].samples * clips[i].channels, 1e9f);
  }
  starts.push_back(output.size());
  std::vector<std::int32_t> errors(files, -1);
  for (const auto& run : packing.runs)
    decode_flac(packing.batch(run, bytes.data(), packing.offsets.data(), packing.rows.data(), limits,
                              output.data() + starts[run.first], errors.data() + run.first),
                run.bytes, run.rows, 1);

  for (int i = 0; i < files; ++i) {
    const int error = clips[i].error == flac::Error::ok ? errors[i] : static_cast<int>(clips[i].error);
    std::ofstream(folder + std::to_string(i) + ".error") << error;
    std::ofstream decoded(folder + std::to_string(i) + ".decoded", std::ios::binary);
    decoded.write(reinterpret_cast<const char*>(output.data() + starts[i]),
                  static_cast<std::streamsize>((starts[i + 1] - starts[i]) * sizeof(float)));
  }
  return packing.runs.size() == 3 ? 0 : 1;
}
