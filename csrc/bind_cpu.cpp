// Python bindings of the CPU kernels.
#include <stdexcept>
#include <string>

#include "bind.h"
#include "cpu/kernels.h"

using namespace sdsgsm;
using namespace sdsgsm::cpu;

namespace {

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found{&baseline};
#ifdef SDSGSM_MULTI_ISA
  __builtin_cpu_init();
#if __GNUC__ >= 12
  const bool v3 = __builtin_cpu_supports("x86-64-v3"), v4 = __builtin_cpu_supports("x86-64-v4");
#else
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
#endif
  if (v3) found.push_back(&avx2);
  if (v4) found.push_back(&avx512);
#endif
  return found;
}

const Kernels* chosen = runnable().back();

// Null where there are none.
const WinogradKernels* in_bfloat16() {
#ifdef SDSGSM_BF16
  if (chosen == &avx512 && __builtin_cpu_supports("avx512bf16")) return &avx512_bf16;
#endif
  return nullptr;
}

WinogradKernels winograd_for(DType type) {
  if (type == DType::float32) return {chosen->winograd, chosen->winograd_pack};
  if (type == DType::bfloat16 && in_bfloat16()) return *in_bfloat16();
  throw std::invalid_argument("type: no Winograd products for it on this machine");
}

// One address; or seven, seven sizes, and whether there is one crop for all.
using Maps = std::vector<int64_t>;

const void* whole(const Maps& m) { return m.size() == 1 ? at<const void>(uintptr_t(m[0])) : nullptr; }

PasteCall tiles_of(const Maps& m) {
  PasteCall call{};
  if (m.size() == 1) return call;
  if (m.size() != 15) throw std::invalid_argument("maps: 1 or 15 numbers");
  call.clean = at<const void>(uintptr_t(m[0]));
  call.crops = at<const void>(uintptr_t(m[1]));
  const int32_t** const indices[] = {&call.image, &call.row, &call.col};
  for (int i = 0; i < 3; ++i) *indices[i] = at<const int32_t>(uintptr_t(m[2 + i]));
  call.rows = at<const Along>(uintptr_t(m[5]));
  call.cols = at<const Along>(uintptr_t(m[6]));
  int64_t* const sizes[] = {&call.channels, &call.map_h, &call.map_w, &call.crop_h,
                            &call.crop_w, &call.tile_h, &call.tile_w};
  for (int i = 0; i < 7; ++i) *sizes[i] = m[7 + i];
  call.one_crop = m[14] != 0;
  return call;
}

void use_isa(const std::string& name) {
  for (const Kernels* kernels : runnable())
    if (name == kernels->isa) {
      chosen = kernels;
      return;
    }
  throw std::invalid_argument("isa: " + name + " is not available on this machine");
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : runnable()) names.push_back(kernels->isa);
  return names;
}

}  // namespace

PYBIND11_MODULE(_native_cpu, m) {
  m.attr("interface") = kInterface;
  m.doc() = "CPU kernels of sdsgsm_fast: raw addresses in, nothing out.";
  const auto update = [](const UpdateCall& call, int threads) { chosen->update(call, threads); };
  const auto occlude = [](const OccludeCall& call, int threads) { chosen->occlude(call, threads); };
  const auto window_mean = [](const WindowMeanCall& call, int threads) {
    chosen->window_mean(call, threads);
  };
  const auto paste = [](const PasteCall& call, int threads) { chosen->paste(call, threads); };
  def_update<decltype(update), int>(m, update);
  def_occlude<decltype(occlude), int>(m, occlude);
  def_window_mean<decltype(window_mean), int>(m, window_mean);
  def_paste<decltype(paste), int>(m, paste);
  // Maps: an address, 0 for none; or tiles, as paste() takes them but for `out` and `pad`.
  // Sizes: batch, channels, outputs, in_h, in_w, out_h, out_w, rows above, columns before, points.
  m.def("winograd", [](const Maps& x, uintptr_t weight, uintptr_t bias, const Maps& other,
                       uintptr_t out, const std::array<int64_t, 10>& s, bool relu, int type,
                       int threads) {
    const PasteCall tiles = tiles_of(x), others = tiles_of(other);
    const WinogradCall call{whole(x), at<const void>(weight), at<const float>(bias), whole(other),
                            at(out), s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9],
                            relu, x.size() > 1 ? &tiles : nullptr,
                            other.size() > 1 ? &others : nullptr};
    const WinogradKernels kernels = winograd_for(DType(type));
    py::gil_scoped_release released;
    kernels.winograd(call, threads);
  });
  m.def("winograd_pack", [](uintptr_t weight, uintptr_t out, int64_t outputs, int64_t channels,
                            int64_t points, int type, int threads) {
    const WinogradPackCall call{at<const float>(weight), at(out), outputs, channels, points};
    const WinogradKernels kernels = winograd_for(DType(type));
    py::gil_scoped_release released;
    kernels.winograd_pack(call, threads);
  });
  m.def("winograd_in_bfloat16", [] { return in_bfloat16() != nullptr; });
  m.def("isas", isas, "Instruction sets that this machine can run, the best last.");
  m.def("isa", [] { return std::string(chosen->isa); }, "The instruction set in use.");
  m.def("use_isa", use_isa, "Choose one of isas(), for tests and benchmarks.");
}
