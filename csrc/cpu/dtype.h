// Element types of tensors. Arithmetic is float32 for all of them.
#pragma once

namespace slap_fast {

enum class DType { float32, bfloat16, float16 };

}  // namespace slap_fast
