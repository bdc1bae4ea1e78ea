// What equation 5 reduces over an image, by the threads of a block, in a fixed order.
#pragma once
#include "../update.h"
#include "group.cuh"

namespace sdsgsm::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ double joined(Normalize normalize, double a, double b) {
  return normalize == Normalize::max_abs ? larger(a, b) : a + b;
}

// One value more. Squares in double: those of tiny gradients vanish in float.
template <class C>
__device__ __forceinline__ void reduce_value(Normalize normalize, C g, C& sum, double& squares) {
  const C magnitude = g < C(0) ? -g : g;
  if (normalize == Normalize::rms)
    squares += double(g) * double(g);
  else
    sum = normalize == Normalize::max_abs ? larger(sum, magnitude) : sum + magnitude;
}

// Of all threads of the block, for all of them. `shared` holds a double for each warp.
__device__ __forceinline__ double over_block(Normalize normalize, double value, double* shared) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = joined(normalize, value, __shfl_xor_sync(0xffffffffu, value, step));
  const int warps = int(blockDim.x) / kWarp;
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  double total = shared[0];
  for (int i = 1; i < warps; ++i) total = joined(normalize, total, shared[i]);
  return total;
}

}  // namespace sdsgsm::cuda
