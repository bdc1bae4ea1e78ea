// Python bindings of the CPU kernels. Addresses and sizes come in as integers, already checked by
// Python: no torch header is included, so one binary serves every torch version.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/kernels.h"

namespace py = pybind11;
using namespace sdsgsm;
using namespace sdsgsm::cpu;

namespace {

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found{&baseline};
#ifdef SDSGSM_MULTI_ISA
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2"))
    found.push_back(&avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512);
#endif
  return found;
}

const Kernels* chosen = runnable().back();

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

template <class T = void>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A number, or the address of an array (B,) of the compute type.
using Setting = std::pair<uintptr_t, double>;

PerImage per_image(const Setting& setting) {
  return {at<const void>(setting.first), setting.second};
}

void update_binding(uintptr_t adv, uintptr_t adv_out, uintptr_t images, uintptr_t grad,
                    uintptr_t domain, uintptr_t momentum, uintptr_t momentum_out,
                    uintptr_t active, const Setting& eps, const Setting& alpha,
                    const Setting& background, int64_t batch, int64_t channels, int64_t pixels,
                    bool channels_last, int image_type, int grad_type, double gain, double decay,
                    double lo, double hi, double sign, int normalize, int threads) {
  const UpdateCall call{at<const void>(adv),
                        at(adv_out),
                        at<const void>(images),
                        at<const void>(grad),
                        at<const void>(domain),
                        at<const void>(momentum),
                        at(momentum_out),
                        at<const uint8_t>(active),
                        per_image(eps),
                        per_image(alpha),
                        per_image(background),
                        batch,
                        channels,
                        pixels,
                        channels_last,
                        DType(image_type),
                        DType(grad_type),
                        gain,
                        decay,
                        lo,
                        hi,
                        sign,
                        Normalize(normalize),
                        threads};
  py::gil_scoped_release released;
  chosen->update(call);
}

WindowGrid grid_of(const std::array<int64_t, 8>& g) {
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]};
}

void occlude_binding(uintptr_t images, uintptr_t out, const std::vector<double>& fill,
                     const std::vector<double>& mean, const std::vector<double>& std,
                     int64_t batch, int64_t channels, int64_t first, int64_t count,
                     const std::array<int64_t, 8>& grid, bool channels_last, int image_type,
                     int out_type, int threads) {
  const OccludeCall call{at<const void>(images), at(out),     fill.data(),
                         mean.data(),            std.data(),  batch,
                         channels,               first,       count,
                         grid_of(grid),          channels_last, DType(image_type),
                         DType(out_type),        threads};
  py::gil_scoped_release released;
  chosen->occlude(call);
}

void window_mean_binding(uintptr_t scores, uintptr_t out, int64_t batch,
                         const std::array<int64_t, 8>& grid, int type, int threads) {
  const WindowMeanCall call{at<const void>(scores), at(out),     batch,
                            grid_of(grid),          DType(type), threads};
  py::gil_scoped_release released;
  chosen->window_mean(call);
}

}  // namespace

PYBIND11_MODULE(_native_cpu, m) {
  m.attr("interface") = 1;  // native.py refuses a module of another number
  m.doc() = "CPU kernels of sdsgsm_fast: raw addresses in, nothing out.";
  m.def("update", update_binding);
  m.def("occlude", occlude_binding);
  m.def("window_mean", window_mean_binding);
  m.def("isas", isas, "Instruction sets that this machine can run, the best last.");
  m.def("isa", [] { return std::string(chosen->isa); }, "The instruction set in use.");
  m.def("use_isa", use_isa, "Choose one of isas(), for tests and benchmarks.");
}
