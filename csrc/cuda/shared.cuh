// The block's shared memory, of the size that the launch asked for.
#pragma once
#include <cuda_runtime.h>

namespace sdsgsm::cuda {

#ifdef CUDA_ON_CPU
inline void* shared_memory() { return emulated_shared(); }
#else
__device__ __forceinline__ void* shared_memory() {
  extern __shared__ uint4 words[];
  return words;
}
#endif

}  // namespace sdsgsm::cuda
