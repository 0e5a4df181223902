#pragma once

#include <cstdint>

namespace slap_fast {

// static: units compiled for different instruction sets must not share one copy.
static inline std::int64_t round_up(std::int64_t x, std::int64_t unit) { return (x + unit - 1) / unit * unit; }

}  // namespace slap_fast
