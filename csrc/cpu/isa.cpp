#include "isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace slap_fast {
namespace {

constexpr Isa kAll[] = {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

#if defined(__x86_64__)
// By cpuid: older compilers do not accept these names in __builtin_cpu_supports.
bool has_f16c_and_pclmul() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 29)) && (ecx & (1u << 1));
}

// Every CPU with AVX2 that is sold has these, but a virtual machine may hide them.
bool has_bit_manipulation() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool bmi = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & (1u << 3)) && (ebx & (1u << 8));
  const bool lzcnt = __get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 5));
  return bmi && lzcnt;
}

bool has_avx512_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 5));
}

bool has_vnni(Vnni width) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (width == Vnni::avx512) return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 11));
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 4));
}
#endif

std::atomic<bool>& forced() {
  static std::atomic<bool> is_forced{false};
  return is_forced;
}

Isa default_isa() {
  Isa best = Isa::baseline;
  for (Isa isa : compiled_isas())
    if (isa <= detected_isa()) best = isa;
  return best;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{default_isa()};
  return isa;
}

std::string names(const std::vector<Isa>& isas) {
  std::string joined;
  for (Isa isa : isas) joined += (joined.empty() ? "" : ", ") + std::string(isa_name(isa));
  return joined;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    default:
      return "baseline";
  }
}

Isa detected_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c_and_pclmul() &&
                    has_bit_manipulation();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return has_avx512_bf16() ? Isa::avx512_bf16 : Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

std::vector<Isa> compiled_isas() {
  return {
      Isa::baseline,
#if defined(SLAP_FAST_HAS_AVX2)
      Isa::avx2,
#endif
#if defined(SLAP_FAST_HAS_AVX512)
      Isa::avx512,
#endif
#if defined(SLAP_FAST_HAS_AVX512_BF16)
      Isa::avx512_bf16,
#endif
  };
}

bool uses_vnni(Vnni width) {
#if defined(__x86_64__)
  static const bool has[] = {has_vnni(Vnni::avx2), has_vnni(Vnni::avx512)};
  const bool allowed = !forced().load(std::memory_order_relaxed) || chosen_isa() >= Isa::avx512_bf16;
  return allowed && has[width == Vnni::avx512];
#else
  (void)width;
  return false;
#endif
}

Isa chosen_isa() { return chosen().load(std::memory_order_relaxed); }

void force_isa(const std::string& name) {
  for (Isa isa : kAll) {
    if (name != isa_name(isa)) continue;
    if (isa > detected_isa())
      throw std::invalid_argument("this machine lacks " + name + "; the highest it runs is " +
                                  isa_name(detected_isa()));
    for (Isa compiled : compiled_isas()) {
      if (isa != compiled) continue;
      forced().store(true, std::memory_order_relaxed);
      chosen().store(isa, std::memory_order_relaxed);
      return;
    }
    throw std::invalid_argument("this build has no " + name + " code; it has " + names(compiled_isas()));
  }
  throw std::invalid_argument("unknown instruction set '" + name + "'; choose one of " +
                              names({std::begin(kAll), std::end(kAll)}));
}

}  // namespace slap_fast
