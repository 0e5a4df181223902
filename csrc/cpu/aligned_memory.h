// Memory for vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace slap_fast {

// `bytes` aligned to a cache line, uninitialised.
class AlignedMemory {
 public:
  explicit AlignedMemory(std::int64_t bytes)
      : data_(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{kAlignment})) {}
  ~AlignedMemory() { ::operator delete(data_, std::align_val_t{kAlignment}); }
  AlignedMemory(const AlignedMemory&) = delete;
  AlignedMemory& operator=(const AlignedMemory&) = delete;
  void* get() const { return data_; }

 private:
  static constexpr std::size_t kAlignment = 64;
  void* data_;
};

}  // namespace slap_fast
