// The kernels compiled for AVX2 and FMA (x86-64-v3).
#include "isa.h"
#ifdef SDSGSM_MULTI_ISA
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,movbe")
#include "kernels.h"

namespace sdsgsm::cpu {
namespace {
#include "blocks.inl"
#include "occlude.inl"
#include "block.inl"
#include "lanes_avx2.inl"
#include "update.inl"
#include "window_mean.inl"
#include "paste.inl"
constexpr int kLanes = 8, kRows = 6, kVecs = 2;  // vectors.inl: 12 of 16 registers
#include "vectors.inl"
#include "pixels.inl"
constexpr int kTiles = 48;  // winograd.inl
#include "winograd.inl"
}  // namespace

extern const Kernels avx2{"avx2", update, occlude, window_mean, paste,
                            winograd<Single>, winograd_pack<Single>};
}  // namespace sdsgsm::cpu
#endif
