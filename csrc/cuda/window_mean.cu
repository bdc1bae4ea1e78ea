// Equation 2 for a batch: a thread a pixel.
#include "device.h"
#include "launch.h"

namespace sdsgsm::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) means(WindowMeanCall call, int64_t total) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= total) return;
  const WindowGrid& g = call.grid;
  const int64_t pixel = at % (g.height * g.width), b = at / (g.height * g.width);
  const T* scores = static_cast<const T*>(call.scores) + b * g.rows * g.cols;
  static_cast<T*>(call.out)[at] = mean_at(scores, g, pixel / g.width, pixel % g.width);
}

template <class T>
void launch(const WindowMeanCall& call, cudaStream_t on) {
  const int64_t total = call.batch * call.grid.height * call.grid.width;
  const int64_t blocks = (total + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) throw std::runtime_error("scores: expected maps of less than 2^39 pixels in all");
  launch_kernel(means<T>, Grid{blocks, kThreads, 1, 0, on}, call, total);
}

}  // namespace

void window_mean(const WindowMeanCall& call, int device, uintptr_t stream) {
  const OnDevice guard(device);
  if (call.type == DType::float64) return launch<double>(call, stream_of(stream));
  launch<float>(call, stream_of(stream));
}

}  // namespace sdsgsm::cuda
