// CUDA's runtime for tests without a GPU: g++ compiles csrc/cuda with this header, and a kernel runs
// with an operating-system thread for each thread of a block, the blocks one after another. Barriers
// and shuffles are real, so indices, reductions and masks are what a GPU would do; memory order,
// the meeting of a cluster's blocks and machine code are not. Misaligned accesses stop the program if it is compiled with
// -fsanitize=alignment.
#pragma once
#include <pthread.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#define __CUDACC__ 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static
#define __launch_bounds__(...)
#define SDSGSM_CLUSTERS 1

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1) : x(x) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

struct Emulated {
  pthread_barrier_t barrier;
  std::vector<double> exchange;
};
inline Emulated* emulated = nullptr;

inline void __trap() {}
inline void __syncthreads() { pthread_barrier_wait(&emulated->barrier); }
inline double __shfl_xor_sync(unsigned, double value, int mask) {
  emulated->exchange[threadIdx.x] = value;
  __syncthreads();
  const double other = emulated->exchange[threadIdx.x ^ unsigned(mask)];
  __syncthreads();
  return other;
}

using std::isinf;
using cudaStream_t = struct Stream*;
using cudaError_t = int;
constexpr int cudaSuccess = 0, cudaDevAttrClusterLaunch = 0, cudaLaunchAttributeClusterDimension = 0;
struct cudaLaunchAttribute {
  int id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  int numAttrs;
};
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int) { return 0; }
// Clusters are there if the environment says so: their blocks run one by one, and cannot meet.
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = std::getenv("CUDA_ON_CPU_CLUSTERS") != nullptr;
  return cudaSuccess;
}

template <class... P>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), P... args) {
  const unsigned threads = config->blockDim.x;
  Emulated state{{}, std::vector<double>(threads)};
  pthread_barrier_init(&state.barrier, nullptr, threads);
  emulated = &state;
  std::vector<std::thread> team;
  for (unsigned t = 0; t < threads; ++t)
    team.emplace_back([=] {
      threadIdx = dim3(t), blockDim = config->blockDim, gridDim = config->gridDim;
      for (unsigned b = 0; b < gridDim.x; ++b) {
        blockIdx = dim3(b);
        kernel(args...);
        __syncthreads();  // shared memory is one for all blocks
      }
    });
  for (auto& thread : team) thread.join();
  pthread_barrier_destroy(&state.barrier);
  return cudaSuccess;
}
