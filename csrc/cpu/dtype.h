// How floats lie in memory; the mathematics is float32 for each.
#pragma once

namespace slap_fast {

enum class DType { float32, bfloat16, float16 };

}  // namespace slap_fast
