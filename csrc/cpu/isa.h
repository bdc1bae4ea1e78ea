// Whether this compiler builds a file for another instruction set by a pragma. The standard headers
// come here, ahead of that pragma: no function of theirs may be compiled for a machine at hand only.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined operands inside its own AVX-512 header for mistakes, and on aarch64 the tiles of
// winograd.inl, of which the rows that are read have been written.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SDSGSM_MULTI_ISA 1
#if __GNUC__ >= 12
#define SDSGSM_BF16 1  // older ones cannot ask a CPU for it
#endif
#include <immintrin.h>
#endif
