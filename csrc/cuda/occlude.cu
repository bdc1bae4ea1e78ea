// Zeroed-out copies of a batch, normalised, converted and laid out on the way: bytes written once.
#include "device.h"
#include "group.cuh"
#include "launch.h"

namespace sdsgsm::cuda {
namespace {

constexpr int kThreads = 256;

// Where a value of the output lies: found by division once a thread, then by counting.
struct Place {
  int64_t copy, image;
  uint32_t c, y, x;
  Window window;

  __device__ Place(const OccludeCall& call, int64_t at) {
    const uint32_t channels = uint32_t(call.channels), width = uint32_t(call.grid.width);
    const uint32_t height = uint32_t(call.grid.height);
    const int64_t size = int64_t(channels) * height * width;
    copy = at / size;
    uint32_t inside = uint32_t(at % size);
    if (call.channels_last) {
      c = inside % channels;
      inside /= channels;
    } else {
      c = inside / (height * width);
      inside %= height * width;
    }
    y = inside / width;
    x = inside % width;
    enter(call);
  }

  __device__ void enter(const OccludeCall& call) {
    image = copy / call.count;
    window = window_at(call.grid, call.first + copy % call.count);
  }

  __device__ void advance(const OccludeCall& call) {
    const uint32_t channels = uint32_t(call.channels), width = uint32_t(call.grid.width);
    const uint32_t height = uint32_t(call.grid.height);
    if (call.channels_last) {
      if (++c < channels) return;
      c = 0;
    }
    if (++x < width) return;
    x = 0;
    if (++y < height) return;
    y = 0;
    if (!call.channels_last && ++c < channels) return;
    c = 0;
    ++copy;
    enter(call);
  }
};

template <class C, class I>
__device__ C value_at(const OccludeCall& call, const Place& p) {
  const C mean = C(call.mean[p.c]), std = C(call.std[p.c]);
  const Window& w = p.window;
  if (p.y >= w.top && p.y < w.bottom && p.x >= w.left && p.x < w.right)
    return filled(call.image_type, C(call.fill[p.c]), mean, std);
  const int64_t row = (p.image * call.channels + p.c) * call.grid.height + p.y;
  const I* images = static_cast<const I*>(call.images);
  return normalised(C(load(images + row * call.grid.width + p.x)), mean, std);
}

// A thread writes a group of consecutive values, whichever copies they belong to. W is what store()
// takes for O.
template <class C, class I, class O, class W>
__global__ void __launch_bounds__(kThreads) copies_of(OccludeCall call, int64_t total) {
  const int64_t start = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kGroup;
  if (start >= total) return;
  O* out = static_cast<O*>(call.out) + start;
  Place place(call, start);
  const int64_t rest = total - start;
  Group<W> group;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    if (i < rest) group[i] = W(value_at<C, I>(call, place));
    place.advance(call);
  }
  if (rest >= kGroup) return store_group(out, group);
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (i < rest) store(out + i, group[i]);
}

template <class C, class I, class O, class W>
void launch(const OccludeCall& call, cudaStream_t on) {
  const int64_t values = call.channels * call.grid.height * call.grid.width;
  const int64_t total = call.batch * call.count * values, each = int64_t(kThreads) * kGroup;
  const int64_t blocks = (total + each - 1) / each;
  if (values > INT32_MAX || blocks > INT32_MAX)
    throw std::runtime_error("images: expected less than 2^31 values each, 2^42 in all copies");
  launch_kernel(copies_of<C, I, O, W>, blocks, kThreads, on, 1, call, total);
}

template <class C, class I>
void launch_to(const OccludeCall& call, cudaStream_t on) {
  switch (call.out_type) {
    case DType::float16: return launch<C, I, Half, float>(call, on);
    case DType::bfloat16: return launch<C, I, BFloat16, float>(call, on);
    case DType::float32: return launch<C, I, float, float>(call, on);
    case DType::float64: return launch<C, I, double, double>(call, on);
  }
}

}  // namespace

void occlude(const OccludeCall& call, int device, uintptr_t stream) {
  const OnDevice guard(device);
  const cudaStream_t on = stream_of(stream);
  switch (call.image_type) {
    case DType::float16: return launch_to<float, Half>(call, on);
    case DType::bfloat16: return launch_to<float, BFloat16>(call, on);
    case DType::float32: return launch_to<float, float>(call, on);
    case DType::float64: return launch_to<double, double>(call, on);
  }
}

}  // namespace sdsgsm::cuda
