// CUDA's return codes as exceptions, and the current device set for a while.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace sdsgsm::cuda {

inline void check(cudaError_t code) {
  if (code != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(code));
}

class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_));
    if (before_ != device) check(cudaSetDevice(device));
    changed_ = before_ != device;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);  // a destructor must not throw
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Of a block that keeps data in shared memory: with what the system takes of each, three fit a multiprocessor.
constexpr int64_t kSharedBytes = 75 << 10;

// What a kernel runs on: `blocks` blocks, of which every `ranks` form a cluster.
struct Grid {
  int64_t blocks, threads, ranks, shared;  // `shared` bytes of dynamic shared memory a block
  cudaStream_t on;
};

template <class... Parameters, class... Arguments>
void launch_kernel(void (*kernel)(Parameters...), const Grid& grid, Arguments... arguments) {
  constexpr int64_t kUnasked = 48 << 10;  // bytes of shared memory that every kernel may have
  if (grid.shared > kUnasked)  // one limit for all launches: another thread's may be on its way
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               int(grid.shared > kSharedBytes ? grid.shared : kSharedBytes)));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = unsigned(grid.ranks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.blocks));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = size_t(grid.shared);
  config.stream = grid.on;
  config.attrs = &cluster;
  config.numAttrs = grid.ranks > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

inline cudaStream_t stream_of(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace sdsgsm::cuda
