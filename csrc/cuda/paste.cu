// Tiles with crops pasted in: a thread a unit of up to 16 bytes, so that loads and stores are wide
// wherever a pixel's channels fill them.
#include "../paste.h"
#include "device.h"
#include "launch.h"

namespace sdsgsm::cuda {
namespace {

constexpr int kThreads = 256;

// `call.channels` counts units; the sizes of the tiles are less than 2^31 units.
template <class Unit>
__global__ void __launch_bounds__(kThreads) tiles_of(PasteCall call, Unit pad, int64_t total) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= total) return;
  const uint32_t channels = uint32_t(call.channels), width = uint32_t(call.tile_w);
  const uint32_t size = channels * width * uint32_t(call.tile_h);
  const int64_t tile = at / size;
  uint32_t inside = uint32_t(at % size);
  const uint32_t c = inside % channels;
  inside /= channels;
  const Along row = call.rows[call.row[tile]], col = call.cols[call.col[tile]];
  const int64_t y = row.start + int64_t(inside / width), x = col.start + int64_t(inside % width);
  Unit value = pad;
  if (y >= 0 && y < call.map_h && x >= 0 && x < call.map_w) {
    if (call.crops && covers(row, y) && covers(col, x))
      value = static_cast<const Unit*>(call.crops)[crop_index(call, tile, row, col, y, x) + c];
    else
      value = static_cast<const Unit*>(call.clean)[map_index(call, tile, y, x) + c];
  }
  static_cast<Unit*>(call.out)[at] = value;
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
  const int64_t size = call.tile_h * call.tile_w * call.channels, total = call.tiles * size;
  const int64_t blocks = (total + kThreads - 1) / kThreads;
  if (size > INT32_MAX || blocks > INT32_MAX)
    throw std::runtime_error("tiles: expected less than 2^31 values each, 2^39 in all");
  launch_kernel(tiles_of<Unit>, blocks, kThreads, on, 1, call, pad.unit, total);
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
