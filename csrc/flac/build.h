// Macros of the FLAC headers, which compile for CPUs (once per instruction set) and for GPUs.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SLAP_FAST_FLAC_INLINE __host__ __device__ inline
// Code that must not be there twice: registers are allocated for all of it together.
#define SLAP_FAST_FLAC_NOINLINE __host__ __device__ __noinline__
#else
#define SLAP_FAST_FLAC_INLINE inline
#define SLAP_FAST_FLAC_NOINLINE inline
#endif

// Loops over few samples, which then stay in registers; more are in memory.
#if defined(__CUDA_ARCH__)
#define SLAP_FAST_FLAC_UNROLL _Pragma("unroll (kOrder <= 16 ? kOrder : 1)")
#else
#define SLAP_FAST_FLAC_UNROLL
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
