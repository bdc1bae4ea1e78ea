// The CPU kernels' interface: one table of functions an instruction set.
#pragma once
#include "../calls.h"
#include "../paste.h"
#include "../winograd.h"
#include "isa.h"

namespace sdsgsm::cpu {

struct Kernels {
  const char* isa;
  void (*update)(const UpdateCall&, int threads);
  void (*occlude)(const OccludeCall&, int threads);
  void (*window_mean)(const WindowMeanCall&, int threads);
  void (*paste)(const PasteCall&, int threads);
  void (*winograd)(const WinogradCall&, int threads);
  void (*winograd_pack)(const WinogradPackCall&, int threads);
};

struct WinogradKernels {
  void (*winograd)(const WinogradCall&, int threads);
  void (*winograd_pack)(const WinogradPackCall&, int threads);
};

extern const Kernels baseline;
#ifdef SDSGSM_MULTI_ISA
extern const Kernels avx2;
extern const Kernels avx512;
#endif
#ifdef SDSGSM_BF16
extern const WinogradKernels avx512_bf16;  // in bfloat16
#endif

}  // namespace sdsgsm::cpu
