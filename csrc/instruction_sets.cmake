# Kernels are compiled once per instruction set; csrc/cpu/isa.cpp selects among them at run time.

set(SLAP_FAST_ISAS avx2 avx512 avx512_bf16 CACHE STRING "Instruction sets to compile in addition to the baseline")

function(add_isa library name sources)
  string(REPLACE "_vnni" "" listed ${name})  # comes with the instruction set that it extends
  if(NOT listed STREQUAL "baseline" AND NOT listed IN_LIST SLAP_FAST_ISAS)
    return()
  endif()
  add_library(kernels_${name} OBJECT ${${sources}})
  target_include_directories(kernels_${name} PRIVATE "${CMAKE_CURRENT_FUNCTION_LIST_DIR}")
  target_compile_definitions(kernels_${name} PRIVATE SLAP_FAST_ISA=${name})
  # No implicit FMA contraction: the same expression must round the same everywhere. Kernels call fma() explicitly.
  target_compile_options(kernels_${name} PRIVATE -ffp-contract=off)
  # GCC's own AVX-512 headers trigger false warnings about uninitialized vectors.
  target_compile_options(kernels_${name} PRIVATE ${ARGN} "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-uninitialized>")
  target_sources(${library} PRIVATE $<TARGET_OBJECTS:kernels_${name}>)
  string(TOUPPER ${name} upper)
  target_compile_definitions(${library} PRIVATE SLAP_FAST_HAS_${upper})
endfunction()

# Adds the kernels in the list `sources` to `library`, those in the list `bf16_sources` for AVX512-BF16 too, and those in
# an optional fourth list for VNNI of 256 and of 512 bits.
# A new instruction set needs a line here and an entry in csrc/cpu/isa.cpp.
function(add_kernels library sources bf16_sources)
  add_isa(${library} baseline ${sources})
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpclmul)
    set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
    add_isa(${library} avx2 ${sources} ${avx2})
    add_isa(${library} avx512 ${sources} ${avx512})
    include(CheckCXXCompilerFlag)
    check_cxx_compiler_flag(-mavx512bf16 SLAP_FAST_COMPILES_AVX512_BF16)
    if(SLAP_FAST_COMPILES_AVX512_BF16 AND ${bf16_sources})
      add_isa(${library} avx512_bf16 ${bf16_sources} ${avx512} -mavx512bf16)
    endif()
    foreach(vnni_sources ${ARGN})
      check_cxx_compiler_flag(-mavxvnni SLAP_FAST_COMPILES_AVX2_VNNI)
      if(SLAP_FAST_COMPILES_AVX2_VNNI)
        add_isa(${library} avx2_vnni ${vnni_sources} ${avx2} -mavxvnni)
      endif()
      check_cxx_compiler_flag(-mavx512vnni SLAP_FAST_COMPILES_AVX512_VNNI)
      if(SLAP_FAST_COMPILES_AVX512_VNNI)
        add_isa(${library} avx512_vnni ${vnni_sources} ${avx512} -mavx512vnni)
      endif()
    endforeach()
  endif()
endfunction()
