// What equation 5 reduces over an image, by the threads of a block, in a fixed order. In double, as
// everything here: neither the place of an image in its batch, by which groups are cut, nor huge or
// tiny values may show.
#pragma once
#include "../update.h"
#include "group.cuh"

namespace sdsgsm::cuda {

constexpr unsigned kWarp = 32;

__device__ __forceinline__ double joined(Normalize normalize, double a, double b) {
  return normalize == Normalize::max_abs ? larger(a, b) : a + b;
}

// What was reduced so far, with one more value.
template <class C>
__device__ __forceinline__ double with_value(Normalize normalize, double whole, C g) {
  if (normalize == Normalize::rms) return whole + double(g) * double(g);
  return joined(normalize, whole, double(fabs(g)));
}

// With a group more: the branch is taken once.
template <class C>
__device__ __forceinline__ double with_group(Normalize normalize, double whole, const Group<C>& g) {
  if (normalize == Normalize::rms) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) whole = with_value(Normalize::rms, whole, g[i]);
  } else if (normalize == Normalize::max_abs) {
    C most = C(0);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) most = larger(most, C(fabs(g[i])));
    whole = larger(whole, double(most));
  } else if (normalize == Normalize::mean_abs) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) whole = with_value(Normalize::mean_abs, whole, g[i]);
  }
  return whole;
}

// Over `lanes` neighbouring lanes of a warp, all of which take part.
__device__ __forceinline__ double over_lanes(Normalize normalize, double value, unsigned lanes) {
  for (unsigned step = lanes / 2; step > 0; step /= 2)
    value = joined(normalize, value, __shfl_xor_sync(0xffffffffu, value, int(step)));
  return value;
}

// Of all threads of the block, for its first warp only. `of_warp` holds a double for each of up to
// 32 warps.
__device__ __forceinline__ double over_block(Normalize normalize, double value, double* of_warp) {
  value = over_lanes(normalize, value, kWarp);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x >= kWarp) return 0.0;
  const double part = threadIdx.x < blockDim.x / kWarp ? of_warp[threadIdx.x] : 0.0;
  return over_lanes(normalize, part, kWarp);
}

}  // namespace sdsgsm::cuda
