// Tiles with crops pasted in. A block takes a piece of one tile, so that all but the place inside it
// is worked out once; a thread a few units of up to 16 bytes, all on their way before the first is
// written.
#include "../paste.h"
#include "device.h"
#include "divide.cuh"
#include "launch.h"

namespace sdsgsm::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kUnits = 4;  // of a thread

// What follows from a call for all its blocks. `call.channels` counts units.
struct Job {
  PasteCall call;
  Divider channels, width;
  uint32_t size, pieces;  // units of a tile, blocks of it
};

// One axis of a block's tile, and what of it is the map's.
struct Axis {
  int start, from, to, size;

  __device__ __forceinline__ bool inside(int at) const { return at >= 0 && at < size; }
  __device__ __forceinline__ bool pasted(int at) const { return at >= from && at < to; }
};

__device__ __forceinline__ Axis axis_of(const Along& along, int64_t size) {
  return {along.start, along.from, along.to, int(size)};
}

template <class Unit>
__global__ void __launch_bounds__(kThreads) tiles_of(Job job, Unit pad) {
  const PasteCall& call = job.call;
  const unsigned tile = blockIdx.x / job.pieces, piece = blockIdx.x % job.pieces;
  const Axis row = axis_of(call.rows[call.row[tile]], call.map_h);
  const Axis col = axis_of(call.cols[call.col[tile]], call.map_w);
  const int width = int(call.map_w), crop_width = int(call.crop_w), channels = int(call.channels);
  const Unit* clean = static_cast<const Unit*>(call.clean) + map_index(call, tile, 0, 0);
  const Unit* crop = static_cast<const Unit*>(call.crops);
  if (crop && !call.one_crop) crop += int64_t(tile) * call.crop_h * call.crop_w * channels;
  Unit* out = static_cast<Unit*>(call.out) + int64_t(tile) * job.size;

  const unsigned first = piece * blockDim.x * kUnits + threadIdx.x;
  Unit value[kUnits];
#pragma unroll
  for (unsigned k = 0; k < kUnits; ++k) {
    const uint32_t inside = first + k * blockDim.x;
    if (inside >= job.size) continue;
    const uint32_t pixel = job.channels.quotient(inside), line = job.width.quotient(pixel);
    const int c = int(inside - pixel * job.channels.divisor);
    const int y = row.start + int(line), x = col.start + int(pixel - line * job.width.divisor);
    const bool pasted = crop && row.pasted(y) && col.pasted(x);
    const Unit* from = pasted ? crop : clean;
    const int at = pasted ? (y - row.from) * crop_width + x - col.from : y * width + x;
    value[k] = row.inside(y) && col.inside(x) ? from[at * channels + c] : pad;
  }
#pragma unroll
  for (unsigned k = 0; k < kUnits; ++k)
    if (first + k * blockDim.x < job.size) out[first + k * blockDim.x] = value[k];
}

template <class Unit, class T, class Wide>
void launch(PasteCall call, cudaStream_t on) {
  constexpr int64_t per_unit = sizeof(Unit) / sizeof(T);
  union {
    Unit unit;
    T values[per_unit];
  } pad;
  for (int64_t i = 0; i < per_unit; ++i) store(&pad.values[i], Wide(call.pad));
  call.channels /= per_unit;
  const int64_t size = call.tile_h * call.tile_w * call.channels;
  if (!size || !call.tiles) return;
  const int64_t warps = (size + 32 * kUnits - 1) / (32 * kUnits);
  const int64_t threads = warps * 32 < kThreads ? warps * 32 : kThreads, each = threads * kUnits;
  const int64_t pieces = (size + each - 1) / each, blocks = call.tiles * pieces;
  const int64_t map = call.map_h * call.map_w * call.channels;
  const int64_t crop = call.crop_h * call.crop_w * call.channels;
  if (size > INT32_MAX || map > INT32_MAX || crop > INT32_MAX || blocks > INT32_MAX)
    throw std::runtime_error("tiles: expected maps and tiles of less than 2^31 values, 2^39 in all");
  const Job job{call, Divider(call.channels), Divider(call.tile_w), uint32_t(size), uint32_t(pieces)};
  launch_kernel(tiles_of<Unit>, Grid{blocks, threads, 1, 0, on}, job, pad.unit);
}

template <class T, class Wide, class Element>
void launch_wide(const PasteCall& call, cudaStream_t on) {
  const auto addresses = uintptr_t(call.clean) | uintptr_t(call.crops) | uintptr_t(call.out);
  const auto bytes = uintptr_t(call.channels) * sizeof(T) | addresses;
  if (bytes % 16 == 0) return launch<uint4, T, Wide>(call, on);
  if (bytes % 8 == 0) return launch<uint2, T, Wide>(call, on);
  launch<Element, T, Wide>(call, on);
}

}  // namespace

void paste(const PasteCall& call, int device, uintptr_t stream) {
  const OnDevice guard(device);
  const cudaStream_t on = stream_of(stream);
  switch (call.type) {
    case DType::float16: return launch_wide<Half, float, uint16_t>(call, on);
    case DType::bfloat16: return launch_wide<BFloat16, float, uint16_t>(call, on);
    case DType::float32: return launch_wide<float, float, uint32_t>(call, on);
    case DType::float64: return launch_wide<double, double, uint2>(call, on);
  }
}

}  // namespace sdsgsm::cuda
