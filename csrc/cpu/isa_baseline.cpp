// The kernels compiled for any CPU that the compiler targets.
#include "kernels.h"

namespace sdsgsm::cpu {
namespace {
#include "blocks.inl"
#include "occlude.inl"
#include "block.inl"
#include "update.inl"
#include "window_mean.inl"
#include "paste.inl"
constexpr int kLanes = 4, kRows = 6, kVecs = 2;  // vectors.inl: 12 of 16 registers
#include "vectors.inl"
#include "pixels.inl"
constexpr int kTiles = 48;  // winograd.inl
#include "winograd.inl"
}  // namespace

extern const Kernels baseline{"baseline", update, occlude, window_mean, paste,
                       winograd<Single>, winograd_pack<Single>};
}  // namespace sdsgsm::cpu
