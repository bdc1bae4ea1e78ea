// Runs the CPU kernels on cases from standard input, for AddressSanitizer and UBSan to watch. Every
// array lies in an allocation of its exact size. test_sanitize.py writes the input and reads the
// output; numbers are native-endian, in the order in which take() asks for them.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../csrc/cpu/kernels.h"

using namespace sdsgsm;
using namespace sdsgsm::cpu;

namespace {

template <class T>
T take() {
  T value;
  if (std::fread(&value, sizeof value, 1, stdin) != 1) std::abort();
  return value;
}

// A length in bytes, −1 for no array, then the bytes.
struct Array {
  std::vector<char> bytes;
  bool there = false;
  Array() {
    const auto n = take<int64_t>();
    there = n >= 0;
    if (n <= 0) return;
    bytes.resize(size_t(n));
    bytes.shrink_to_fit();
    if (std::fread(bytes.data(), 1, bytes.size(), stdin) != bytes.size()) std::abort();
  }
  void* data() { return there ? bytes.data() : nullptr; }
};

void give(const void* bytes, size_t n) {
  if (n && std::fwrite(bytes, 1, n, stdout) != n) std::abort();
}

WindowGrid take_grid() {
  WindowGrid g{};
  for (int64_t* at : {&g.height, &g.width, &g.patch_h, &g.patch_w, &g.stride_h, &g.stride_w,
                      &g.rows, &g.cols})
    *at = take<int64_t>();
  return g;
}

void update(const Kernels& kernels) {
  Array adv, images, grad, domain, momentum, active, eps, alpha, background;
  const auto in_place = take<int64_t>(), keeps = take<int64_t>();
  UpdateCall call{};
  call.batch = take<int64_t>();
  call.channels = take<int64_t>();
  call.pixels = take<int64_t>();
  call.channels_last = take<int64_t>() != 0;
  call.image_type = DType(take<int64_t>());
  call.grad_type = DType(take<int64_t>());
  call.normalize = Normalize(take<int64_t>());
  const int threads = int(take<int64_t>());
  for (double* at : {&call.gain, &call.decay, &call.lo, &call.hi, &call.sign}) *at = take<double>();
  const size_t compute = call.image_type == DType::float64 ? 8 : 4;
  std::vector<char> out(adv.bytes.size());
  std::vector<char> v(keeps ? size_t(call.batch * call.channels * call.pixels) * compute : 0);
  call.adv = adv.data();
  call.adv_out = in_place ? adv.data() : out.data();
  call.images = images.data();
  call.grad = grad.data();
  call.domain = domain.data();
  call.momentum = momentum.data();
  call.momentum_out = !keeps ? nullptr : in_place && momentum.there ? momentum.data() : v.data();
  call.active = static_cast<uint8_t*>(active.data());
  call.eps = {eps.data(), 0.0};
  call.alpha = {alpha.data(), 0.0};
  call.background = {background.data(), 0.0};
  kernels.update(call, threads);
  give(call.adv_out, adv.bytes.size());
  if (keeps) give(call.momentum_out, v.size());
}

void occlude(const Kernels& kernels) {
  Array images, fill, mean, std;
  OccludeCall call{};
  call.batch = take<int64_t>();
  call.channels = take<int64_t>();
  call.first = take<int64_t>();
  call.count = take<int64_t>();
  call.grid = take_grid();
  call.channels_last = take<int64_t>() != 0;
  call.image_type = DType(take<int64_t>());
  call.out_type = DType(take<int64_t>());
  const int threads = int(take<int64_t>());
  const int64_t values = call.batch * call.count * call.channels * call.grid.height * call.grid.width;
  std::vector<char> out(size_t(values * size_of(call.out_type)));
  call.images = images.data();
  call.out = out.data();
  call.fill = static_cast<double*>(fill.data());
  call.mean = static_cast<double*>(mean.data());
  call.std = static_cast<double*>(std.data());
  kernels.occlude(call, threads);
  give(out.data(), out.size());
}

void window_mean(const Kernels& kernels) {
  Array scores;
  WindowMeanCall call{};
  call.batch = take<int64_t>();
  call.grid = take_grid();
  call.type = DType(take<int64_t>());
  const int threads = int(take<int64_t>());
  const int64_t values = call.batch * call.grid.height * call.grid.width;
  std::vector<char> out(size_t(values * size_of(call.type)));
  call.scores = scores.data();
  call.out = out.data();
  kernels.window_mean(call, threads);
  give(out.data(), out.size());
}

// The arrays of tiles and the call that refers to them; its output is the caller's.
struct Pasted {
  Array clean, crops, image, row, col, rows, cols;
  PasteCall call{};
  Pasted() {
    for (int64_t* at : {&call.tiles, &call.channels, &call.map_h, &call.map_w, &call.crop_h,
                        &call.crop_w, &call.tile_h, &call.tile_w})
      *at = take<int64_t>();
    call.one_crop = take<int64_t>() != 0;
    call.type = DType(take<int64_t>());
    call.clean = clean.data();
    call.crops = crops.data();
    call.image = static_cast<int32_t*>(image.data());
    call.row = static_cast<int32_t*>(row.data());
    call.col = static_cast<int32_t*>(col.data());
    call.rows = static_cast<Along*>(rows.data());
    call.cols = static_cast<Along*>(cols.data());
  }
};

void paste(const Kernels& kernels) {
  Pasted tiles;
  PasteCall& call = tiles.call;
  const int threads = int(take<int64_t>());
  call.pad = take<double>();
  const int64_t values = call.tiles * call.tile_h * call.tile_w * call.channels;
  std::vector<char> out(size_t(values * size_of(call.type)));
  call.out = out.data();
  kernels.paste(call, threads);
  give(out.data(), out.size());
}

void winograd(void (*run)(const WinogradCall&, int), int64_t width) {
  Array x, weight, bias, other;
  WinogradCall call{};
  for (int64_t* at : {&call.batch, &call.channels, &call.outputs, &call.in_h, &call.in_w,
                      &call.out_h, &call.out_w, &call.above, &call.before, &call.points})
    *at = take<int64_t>();
  call.relu = take<int64_t>() != 0;
  std::vector<char> out(size_t(call.batch * call.out_h * call.out_w * call.outputs * width));
  call.x = x.data();
  call.weight = weight.data();
  call.bias = static_cast<float*>(bias.data());
  call.other = other.data();
  call.out = out.data();
  const bool in_tiles = take<int64_t>() != 0;  // twice: what is read, what is added
  if (in_tiles) {
    Pasted tiles, others;
    call.tiles = &tiles.call;
    call.others = &others.call;
    run(call, 2);
  } else {
    run(call, 2);
  }
  give(out.data(), out.size());
}

const Kernels* find(int64_t isa) {
#ifdef SDSGSM_MULTI_ISA
  if (isa == 1) return &avx2;
  if (isa == 2) return &avx512;
#endif
  return isa == 0 ? &baseline : nullptr;
}

}  // namespace

int main() {
  for (;;) {
    int64_t kind;
    if (std::fread(&kind, sizeof kind, 1, stdin) != 1) return 0;
    const int64_t isa = take<int64_t>();
#ifdef SDSGSM_BF16
    if (kind == 4 && isa == 3) {
      winograd(avx512_bf16.winograd, 2);
      continue;
    }
#endif
    const Kernels* kernels = find(isa);
    if (!kernels) return 2;
    if (kind == 0) update(*kernels);
    if (kind == 1) occlude(*kernels);
    if (kind == 2) window_mean(*kernels);
    if (kind == 3) paste(*kernels);
    if (kind == 4) winograd(kernels->winograd, 4);
  }
}
