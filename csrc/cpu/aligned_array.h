// Cache-line aligned array.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace slap_fast {

// `count` uninitialized values, aligned to 64 bytes.
template <class Value>
class AlignedArray {
 public:
  explicit AlignedArray(std::int64_t count)
      : data_(static_cast<Value*>(::operator new(static_cast<std::size_t>(count) * sizeof(Value), kAlignment))) {}
  ~AlignedArray() { ::operator delete(data_, kAlignment); }
  AlignedArray(const AlignedArray&) = delete;
  AlignedArray& operator=(const AlignedArray&) = delete;
  Value* get() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  Value* data_;
};

}  // namespace slap_fast
