// What equation 5 reduces over an image, by the threads of a block, in a fixed order.
#pragma once
#include "../update.h"
#include "group.cuh"

namespace sdsgsm::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ double joined(Normalize normalize, double a, double b) {
  return normalize == Normalize::max_abs ? larger(a, b) : a + b;
}

// Of one value.
__device__ __forceinline__ double reduced(Normalize normalize, double g) {
  return normalize == Normalize::rms ? g * g : g < 0.0 ? -g : g;
}

// Of a group. In double, as everything here: neither the place of an image in its batch, by which
// groups are cut, nor huge or tiny values may show.
template <class C>
__device__ __forceinline__ double reduced(Normalize normalize, const Group<C>& g) {
  double whole = 0.0;
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    whole = joined(normalize, whole, reduced(normalize, double(g[i])));
  return whole;
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
