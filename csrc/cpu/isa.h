// Run-time dispatch over instruction sets.
#pragma once

#include <string>
#include <vector>

namespace slap_fast {

// Ascending: each includes the ones before.
enum class Isa { baseline, avx2, avx512, avx512_bf16 };

const char* isa_name(Isa isa);

// The highest instruction set supported by the CPU and the operating system.
Isa detected_isa();

// Instruction sets compiled into this build, ascending.
std::vector<Isa> compiled_isas();

// The instruction set in use: the highest that is detected and compiled, unless force_isa overrides it.
Isa chosen_isa();

// Whether code with VNNI (sums of products of bytes) of 256 or of 512 bits may run: the CPU has it, and no instruction
// set below avx512_bf16 is forced, which means just what its name says.
enum class Vnni { avx2, avx512 };
bool uses_vnni(Vnni width);

// Throws std::invalid_argument if the name is unknown or the CPU or this build does not support it.
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

// Body of a function that returns `call` from the namespace of the instruction set in use.
#define SLAP_FAST_DISPATCH(call)                          \
  const ::slap_fast::Isa isa = ::slap_fast::chosen_isa(); \
  SLAP_FAST_TRY_AVX512(isa, call)                         \
  SLAP_FAST_TRY_AVX2(isa, call)                           \
  static_cast<void>(isa);                                 \
  return baseline::call

// The same for kernels with an AVX512-BF16 build, which is used for bfloat16 only.
#define SLAP_FAST_DISPATCH_BF16(call, dtype)                                                          \
  SLAP_FAST_TRY_AVX512_BF16(::slap_fast::chosen_isa(), (dtype) == ::slap_fast::DType::bfloat16, call) \
  static_cast<void>(dtype);                                                                           \
  SLAP_FAST_DISPATCH(call)
