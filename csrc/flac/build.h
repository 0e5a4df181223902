// Macros of the FLAC headers, which compile for CPUs (once per instruction set) and for GPUs.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SLAP_FAST_FLAC_INLINE __host__ __device__ inline
#else
#define SLAP_FAST_FLAC_INLINE inline
#endif

// Functions are in an inline namespace named after the instruction set: the linker must not merge two builds.
#if defined(SLAP_FAST_ISA)
#define SLAP_FAST_FLAC_BEGIN  \
  namespace slap_fast::flac { \
  inline namespace SLAP_FAST_ISA {
#else
#define SLAP_FAST_FLAC_BEGIN  \
  namespace slap_fast::flac { \
  inline namespace portable {
#endif
#define SLAP_FAST_FLAC_END \
  }                        \
  }
