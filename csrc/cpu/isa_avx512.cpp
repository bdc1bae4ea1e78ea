// The kernels compiled for AVX-512 (x86-64-v4), with 512-bit vectors.
#include "isa.h"
#ifdef SDSGSM_MULTI_ISA
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,prefer-vector-width=512")
#include "kernels.h"

namespace sdsgsm::cpu {
namespace {
#include "blocks.inl"
#include "occlude.inl"
#include "block.inl"
#include "lanes_avx512.inl"
#include "update.inl"
#include "window_mean.inl"
#include "paste.inl"
constexpr int kLanes = 16, kRows = 6, kVecs = 4;  // vectors.inl: 24 of 32 registers
#include "vectors.inl"
#include "pixels.inl"
constexpr int kTiles = 48;  // winograd.inl
#include "winograd.inl"
}  // namespace

extern const Kernels avx512{"avx512", update, occlude, window_mean, paste,
                            winograd<Single>, winograd_pack<Single>};
}  // namespace sdsgsm::cpu
#endif
