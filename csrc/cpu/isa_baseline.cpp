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
}  // namespace

extern const Kernels baseline{"baseline", update, occlude, window_mean, paste};
}  // namespace sdsgsm::cpu
