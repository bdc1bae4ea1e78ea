// The CUDA kernels' launchers: on a device and a stream of the caller's, asynchronously. Each throws
// std::runtime_error where CUDA reports an error.
#pragma once
#include "../calls.h"
#include "../paste.h"

namespace sdsgsm::cuda {

// Doubles of scratch memory that an update of this shape needs; 0 where it takes one pass.
int64_t update_scratch(int64_t batch, int64_t values, DType image_type, int device);
void update(const UpdateCall& call, int device, uintptr_t stream, uintptr_t scratch);
void occlude(const OccludeCall& call, int device, uintptr_t stream);
void paste(const PasteCall& call, int device, uintptr_t stream);
void window_mean(const WindowMeanCall& call, int device, uintptr_t stream);

}  // namespace sdsgsm::cuda
