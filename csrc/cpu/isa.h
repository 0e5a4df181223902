// Instruction sets: what the machine has, what this build has, and which of them serves.
#pragma once

#include <string>
#include <vector>

namespace slap_fast {

// In order: each includes those before it.
enum class Isa { baseline, avx2, avx512, avx512_bf16 };

const char* isa_name(Isa isa);

// The highest that this machine runs, the operating system's part included.
Isa detected_isa();

// Those that this build has code for, in order.
std::vector<Isa> compiled_isas();

// The one that serves: the highest that is both detected and compiled, unless force_isa chose another.
Isa chosen_isa();

// Throws std::invalid_argument for an unknown name, or one that this machine or this build lacks.
void force_isa(const std::string& name);

}  // namespace slap_fast

#if defined(SLAP_FAST_HAS_AVX2)
#define SLAP_FAST_TRY_AVX2(isa, call) \
  if ((isa) >= ::slap_fast::Isa::avx2) return avx2::call;
#else
#define SLAP_FAST_TRY_AVX2(isa, call)
#endif
#if defined(SLAP_FAST_HAS_AVX512)
#define SLAP_FAST_TRY_AVX512(isa, call) \
  if ((isa) >= ::slap_fast::Isa::avx512) return avx512::call;
#else
#define SLAP_FAST_TRY_AVX512(isa, call)
#endif
#if defined(SLAP_FAST_HAS_AVX512_BF16)
#define SLAP_FAST_TRY_AVX512_BF16(isa, wanted, call) \
  if ((isa) >= ::slap_fast::Isa::avx512_bf16 && (wanted)) return avx512_bf16::call;
#else
#define SLAP_FAST_TRY_AVX512_BF16(isa, wanted, call)
#endif

// The body of a function that returns the best build of a kernel: `call` is declared in namespaces of the sets' names.
#define SLAP_FAST_DISPATCH(call)                          \
  const ::slap_fast::Isa isa = ::slap_fast::chosen_isa(); \
  SLAP_FAST_TRY_AVX512(isa, call)                         \
  SLAP_FAST_TRY_AVX2(isa, call)                           \
  static_cast<void>(isa);                                 \
  return baseline::call

// The same for a kernel whose bfloat16 has products of its own.
#define SLAP_FAST_DISPATCH_BF16(call, dtype)                                                          \
  SLAP_FAST_TRY_AVX512_BF16(::slap_fast::chosen_isa(), (dtype) == ::slap_fast::DType::bfloat16, call) \
  static_cast<void>(dtype);                                                                           \
  SLAP_FAST_DISPATCH(call)
