// Validation of cu_seqlens-style offsets.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace slap_fast {

// Throws std::invalid_argument unless offsets [items + 1] start at 0, never decrease and end at `total`, the number of
// units (samples, frames, tokens) that `owner` has.
template <class Offset>
void check_offsets(const std::string& name, const Offset* offsets, std::int64_t items, std::int64_t total,
                   const std::string& unit, const std::string& owner = "the waveform") {
  if (items < 0 || total < 0)
    throw std::invalid_argument("sizes are " + std::to_string(items) + " clips and " + std::to_string(total) + " " +
                                unit + "; they cannot be negative");
  if (offsets[0] != 0) throw std::invalid_argument(name + "[0] is " + std::to_string(offsets[0]) + "; it must be 0");
  for (std::int64_t i = 0; i < items; ++i)
    if (offsets[i + 1] < offsets[i])
      throw std::invalid_argument(name + "[" + std::to_string(i + 1) + "] is " + std::to_string(offsets[i + 1]) +
                                  ", below " + name + "[" + std::to_string(i) + "] = " + std::to_string(offsets[i]) +
                                  "; offsets must not decrease");
  if (offsets[items] != total)
    throw std::invalid_argument(name + " ends at " + std::to_string(offsets[items]) + ", but " + owner + " has " +
                                std::to_string(total) + " " + unit);
}

}  // namespace slap_fast
