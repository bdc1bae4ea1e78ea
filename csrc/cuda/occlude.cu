// Zeroed-out copies of a batch, normalised, converted and laid out on the way. A thread does that once
// for its values of an image, and then writes them to one copy after another, the fill in their place
// where the copy's window covers them: images are read once, and little more than stores is left.
#include "device.h"
#include "divide.cuh"
#include "launch.h"
#include "shared.cuh"

namespace sdsgsm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kEnoughBlocks = 2048;  // to keep a large GPU busy
constexpr int64_t kMostCopies = 32;      // of a block, if that leaves enough blocks

// What follows from a call for all its blocks. A block takes a tile of an image for a run of copies.
struct Job {
  OccludeCall call;
  Divider outer, inner;  // from a value to its coordinates, see Places
  Divider cols;          // of windows
  uint32_t size, tiles, runs, copies;
};

// The coordinates of a thread's N consecutive values, and the rectangle that they lie in.
template <int N>
struct Places {
  uint32_t c[N], y[N], x[N];
  uint32_t top, bottom, left, right;  // all included

  __device__ Places(const Job& job, uint32_t first) {
    const uint32_t width = uint32_t(job.call.grid.width);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const uint32_t inside = first + i, outer = job.outer.quotient(inside);
      const uint32_t rest = inside - outer * job.outer.divisor;
      const uint32_t pixel = job.call.channels_last ? outer : rest;
      c[i] = job.call.channels_last ? rest : outer;
      y[i] = job.inner.quotient(pixel);
      x[i] = pixel - y[i] * width;
    }
    top = bottom = y[0];
    left = right = x[0];
#pragma unroll
    for (int i = 1; i < N; ++i) {
      top = smaller(top, y[i]), bottom = larger(bottom, y[i]);
      left = smaller(left, x[i]), right = larger(right, x[i]);
    }
  }

  // Where value i lies in a contiguous image.
  __device__ uint32_t in_planes(const WindowGrid& g, int i) const {
    return (c[i] * uint32_t(g.height) + y[i]) * uint32_t(g.width) + x[i];
  }
};

// The windows of consecutive copies.
struct Windows {
  uint32_t row, col, top, left, bottom, right;

  __device__ Windows(const WindowGrid& g, const Divider& cols, uint32_t k)
      : row(cols.quotient(k)), col(k - row * cols.divisor) {
    enter(g);
  }
  __device__ __forceinline__ void enter(const WindowGrid& g) {
    top = row * uint32_t(g.stride_h), left = col * uint32_t(g.stride_w);
    bottom = top + uint32_t(g.patch_h), right = left + uint32_t(g.patch_w);
  }
  __device__ __forceinline__ void advance(const WindowGrid& g) {
    if (++col == uint32_t(g.cols)) col = 0, ++row;
    enter(g);
  }
  __device__ __forceinline__ bool covers(uint32_t y, uint32_t x) const {
    return y >= top && y < bottom && x >= left && x < right;
  }
  template <int N>
  __device__ __forceinline__ bool touches(const Places<N>& p) const {
    return p.bottom >= top && p.top < bottom && p.right >= left && p.left < right;
  }
};

// A channel's constants in the compute type, which a block works out once.
template <class C>
struct Channel {
  C mean, std, fill;  // the fill normalised
};

template <class C>
__device__ const Channel<C>* channels_of(const OccludeCall& call) {
  Channel<C>* channels = static_cast<Channel<C>*>(shared_memory());
#pragma unroll 1
  for (int64_t c = threadIdx.x; c < call.channels; c += kThreads) {
    const C mean = C(call.mean[c]), std = C(call.std[c]);
    channels[c] = {mean, std, filled(call.image_type, C(call.fill[c]), mean, std)};
  }
  __syncthreads();
  return channels;
}

// Values that are written in one access.
template <class O, int N>
struct alignas(sizeof(O) * N) Unit {
  O values[N];
};

// W is what store() takes for O. Each copy's values from a multiple of N on are N times O aligned.
template <class C, class I, class O, class W, int N>
__global__ void __launch_bounds__(kThreads) copies_of(Job job) {
  const OccludeCall& call = job.call;
  const uint32_t tile = blockIdx.x % job.tiles, run = blockIdx.x / job.tiles % job.runs;
  const int64_t b = blockIdx.x / job.tiles / job.runs;
  const uint32_t first = (tile * kThreads + threadIdx.x) * N, count = uint32_t(call.count);
  const Places<N> places(job, first);
  const I* image = static_cast<const I*>(call.images) + b * job.size;
  I read[N];
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (first < job.size) read[i] = image[places.in_planes(call.grid, i)];
  const Channel<C>* channels = channels_of<C>(call);  // the pixels are on their way meanwhile
  if (first >= job.size) return;
  Unit<O, N> clean, fill;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Channel<C> channel = channels[places.c[i]];
    store(&clean.values[i], W(normalised(C(load(read + i)), channel.mean, channel.std)));
    store(&fill.values[i], W(channel.fill));
  }
  const uint32_t from = run * job.copies, to = smaller(from + job.copies, count);
  Windows window(call.grid, job.cols, uint32_t(call.first) + from);
  O* out = static_cast<O*>(call.out) + (b * count + from) * job.size + first;
#pragma unroll 1
  for (uint32_t copy = from; copy < to; ++copy) {
    Unit<O, N> unit = clean;
    if (window.touches(places)) {
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (window.covers(places.y[i], places.x[i])) unit.values[i] = fill.values[i];
    }
    *reinterpret_cast<Unit<O, N>*>(out) = unit;
    out += job.size;
    window.advance(call.grid);
  }
}

template <class C, class I, class O, class W, int N>
void launch_units(const OccludeCall& call, int64_t size, cudaStream_t on) {
  const int64_t each = int64_t(kThreads) * N, tiles = (size + each - 1) / each;
  const int64_t spare = call.batch * call.count * tiles / kEnoughBlocks;
  const int64_t copies = larger<int64_t>(smaller(spare, kMostCopies), 1);
  const int64_t runs = (call.count + copies - 1) / copies, blocks = call.batch * runs * tiles;
  if (size > INT32_MAX || call.count > INT32_MAX || blocks > INT32_MAX)
    throw std::runtime_error("images: expected less than 2^31 values each, 2^39 in all copies");
  const int64_t plane = call.grid.height * call.grid.width;
  const Job job{call, Divider(call.channels_last ? call.channels : plane), Divider(call.grid.width),
                Divider(call.grid.cols), uint32_t(size), uint32_t(tiles), uint32_t(runs), uint32_t(copies)};
  const int64_t shared = call.channels * int64_t(sizeof(Channel<C>));
  launch_kernel(copies_of<C, I, O, W, N>, Grid{blocks, kThreads, 1, shared, on}, job);
}

// Units of 16 bytes where copies are whole numbers of them.
template <class C, class I, class O, class W>
void launch(const OccludeCall& call, cudaStream_t on) {
  constexpr int kWide = 16 / sizeof(O);
  const int64_t size = call.channels * call.grid.height * call.grid.width;
  if (!size || !call.batch || !call.count) return;
  if (size % kWide == 0 && uintptr_t(call.out) % 16 == 0)
    return launch_units<C, I, O, W, kWide>(call, size, on);
  launch_units<C, I, O, W, 1>(call, size, on);
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
