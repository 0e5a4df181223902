#pragma once

#include <cstdint>

namespace slap_fast {

// Internal to each translation unit: code of a higher instruction set must never serve another.
static inline std::int64_t round_up(std::int64_t x, std::int64_t unit) { return (x + unit - 1) / unit * unit; }

}  // namespace slap_fast
