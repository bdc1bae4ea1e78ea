// CUDA's runtime for tests without a GPU: g++ compiles csrc/cuda with this header, and a kernel runs
// with an operating-system thread for each thread of a cluster's blocks, the clusters one after
// another. Barriers, shuffles and the memory that blocks share are real, so indices, reductions and
// masks are what a GPU would do; memory order and machine code are not. Shared memory begins with NaNs
// and ends with a canary. Misaligned accesses stop the program if it is compiled with
// -fsanitize=alignment.
#pragma once
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define __CUDACC__ 1
#define CUDA_ON_CPU 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
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

// A barrier at which threads may arrive before they wait.
class Barrier {
 public:
  explicit Barrier(unsigned threads) : threads_(threads) {}
  unsigned arrive() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const unsigned round = round_;
    if (++arrived_ == threads_) {
      arrived_ = 0, ++round_;
      all_.notify_all();
    }
    return round;
  }
  void wait(unsigned round) {
    std::unique_lock<std::mutex> lock(mutex_);
    all_.wait(lock, [&] { return round_ != round; });
  }
  void meet() { wait(arrive()); }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  const unsigned threads_;
  unsigned arrived_ = 0, round_ = 0;
};

// A block as long as it runs. Its shared memory is as large as the launch asked for.
struct Emulated {
  static constexpr unsigned char kNaN = 0xff, kCanary = 0x5a;
  static constexpr size_t kGuard = 64;
  Barrier barrier;
  std::vector<double> exchange;
  std::unique_ptr<uint4[]> shared;
  size_t bytes;

  Emulated(unsigned threads, size_t bytes)
      : barrier(threads), exchange(threads), shared(new uint4[(bytes + kGuard) / 16 + 1]), bytes(bytes) {}
  unsigned char* memory() { return reinterpret_cast<unsigned char*>(shared.get()); }
  void begin() {
    memset(memory(), kNaN, bytes);
    memset(memory() + bytes, kCanary, kGuard);
  }
  void end() {
    for (size_t i = 0; i < kGuard; ++i)
      if (memory()[bytes + i] != kCanary) {
        fprintf(stderr, "a block wrote beyond its shared memory\n");
        abort();
      }
  }
};
using Cluster = std::vector<std::unique_ptr<Emulated>>;
inline Barrier* meeting = nullptr;  // of the cluster's threads
inline thread_local unsigned arrived_in;  // the round of it in which this thread arrived
inline Cluster* cluster = nullptr;
inline Emulated& own_block() { return *(*cluster)[blockIdx.x % cluster->size()]; }
inline void* emulated_shared() { return own_block().memory(); }

inline void __trap() { abort(); }
inline void __syncthreads() { own_block().barrier.meet(); }

using std::isinf;
using cudaStream_t = struct Stream*;
using cudaError_t = int;
constexpr int cudaSuccess = 0, cudaDevAttrClusterLaunch = 0, cudaLaunchAttributeClusterDimension = 0;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 0, kMostShared = 227 << 10;
struct cudaLaunchAttribute {
  int id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  int numAttrs;
};
inline const char* cudaGetErrorString(cudaError_t) { return "refused"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int) { return 0; }
// Clusters are there if the environment says so.
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = std::getenv("CUDA_ON_CPU_CLUSTERS") != nullptr;
  return cudaSuccess;
}
inline size_t allowed_shared = 48 << 10;
inline cudaError_t cudaFuncSetAttribute(const void*, int, int bytes) {
  if (bytes > kMostShared) return 1;
  allowed_shared = size_t(bytes);
  return cudaSuccess;
}

// The two approximations, each off by a factor 1 + error of the test's choice.
inline double exp2_error = 0.0, reciprocal_error = 0.0;
inline float approximate_exp2(float x) { return float(std::exp2(double(x)) * (1.0 + exp2_error)); }
inline float approximate_reciprocal(float x) { return float(1.0 / double(x) * (1.0 + reciprocal_error)); }
inline float larger_or_nan(float a, float b) { return a != a ? a : b != b ? b : std::fmax(a, b); }
inline float smaller_or_nan(float a, float b) { return a != a ? a : b != b ? b : std::fmin(a, b); }

// A warp's lanes wait for one another only: other warps need not come here.
constexpr unsigned kWarpSize = 32;
inline std::vector<std::unique_ptr<Barrier>>* warp_barriers = nullptr;  // of all blocks of the cluster
inline double __shfl_xor_sync(unsigned, double value, int mask) {
  const unsigned warps = (blockDim.x + kWarpSize - 1) / kWarpSize;
  Barrier& warp =
      *(*warp_barriers)[blockIdx.x % cluster->size() * warps + threadIdx.x / kWarpSize];
  std::vector<double>& exchange = own_block().exchange;
  exchange[threadIdx.x] = value;
  warp.meet();
  const double other = exchange[threadIdx.x ^ unsigned(mask)];
  warp.meet();
  return other;
}

template <class... P>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), P... args) {
  const unsigned threads = config->blockDim.x, blocks = config->gridDim.x;
  const unsigned ranks = config->numAttrs ? config->attrs[0].val.clusterDim.x : 1;
  const bool allowed = config->dynamicSmemBytes <= allowed_shared;
  allowed_shared = 48 << 10;
  if (!allowed || blocks % ranks || ranks > 8 || threads > 1024) return 1;
  Cluster own;
  std::vector<std::unique_ptr<Barrier>> warps;
  for (unsigned r = 0; r < ranks; ++r) {
    own.push_back(std::make_unique<Emulated>(threads, config->dynamicSmemBytes));
    for (unsigned t = 0; t < threads; t += kWarpSize)
      warps.push_back(std::make_unique<Barrier>(threads - t < kWarpSize ? threads - t : kWarpSize));
  }
  Barrier all(ranks * threads);
  cluster = &own, meeting = &all, warp_barriers = &warps;
  std::vector<std::thread> team;
  for (unsigned i = 0; i < ranks * threads; ++i)
    team.emplace_back([=, &all, &own] {
      threadIdx = dim3(i % threads), blockDim = config->blockDim, gridDim = config->gridDim;
      for (unsigned first = 0; first < blocks; first += ranks) {
        blockIdx = dim3(first + i / threads);
        if (threadIdx.x == 0) own_block().begin();
        all.meet();
        kernel(args...);
        all.meet();
        if (threadIdx.x == 0) own_block().end();
      }
    });
  for (auto& thread : team) thread.join();
  return cudaSuccess;
}
