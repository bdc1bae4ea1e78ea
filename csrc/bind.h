// How both modules take their arguments: addresses and sizes as integers, already checked by Python.
// No torch header is included, so one binary serves every torch version. `Where...` is what a device
// needs besides: threads, or a device and its stream.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <utility>
#include <vector>

#include "calls.h"
#include "paste.h"

namespace sdsgsm {

namespace py = pybind11;

constexpr int kInterface = 9;  // native.py refuses modules of another number

template <class T = void>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A number, or the address of an array (B,) of the compute type.
using Setting = std::pair<uintptr_t, double>;

inline PerImage per_image(const Setting& setting) {
  return {at<const void>(setting.first), setting.second};
}

inline WindowGrid grid_of(const std::array<int64_t, 8>& g) {
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]};
}

template <class Run, class... Where>
void def_update(py::module_& m, Run run) {
  m.def("update", [run](uintptr_t adv, uintptr_t adv_out, uintptr_t images, uintptr_t grad,
                        uintptr_t domain, uintptr_t momentum, uintptr_t momentum_out,
                        uintptr_t active, const Setting& eps, const Setting& alpha,
                        const Setting& background, int64_t batch, int64_t channels, int64_t pixels,
                        bool channels_last, int image_type, int grad_type, double gain,
                        double decay, double lo, double hi, double sign, int normalize,
                        Where... where) {
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
                          Normalize(normalize)};
    py::gil_scoped_release released;
    run(call, where...);
  });
}

// Addresses of fill, mean and std: double (C,).
template <class Run, class... Where>
void def_occlude(py::module_& m, Run run) {
  m.def("occlude", [run](uintptr_t images, uintptr_t out, uintptr_t fill, uintptr_t mean,
                         uintptr_t std, int64_t batch, int64_t channels, int64_t first,
                         int64_t count, const std::array<int64_t, 8>& grid, bool channels_last,
                         int image_type, int out_type, Where... where) {
    const OccludeCall call{at<const void>(images),   at(out),
                           at<const double>(fill),   at<const double>(mean),
                           at<const double>(std),    batch,
                           channels,                 first,
                           count,                    grid_of(grid),
                           channels_last,            DType(image_type),
                           DType(out_type)};
    py::gil_scoped_release released;
    run(call, where...);
  });
}

template <class Run, class... Where>
void def_window_mean(py::module_& m, Run run) {
  m.def("window_mean", [run](uintptr_t scores, uintptr_t out, int64_t batch,
                             const std::array<int64_t, 8>& grid, int type, Where... where) {
    const WindowMeanCall call{at<const void>(scores), at(out), batch, grid_of(grid), DType(type)};
    py::gil_scoped_release released;
    run(call, where...);
  });
}

// Sizes: tiles, channels, map_h, map_w, crop_h, crop_w, tile_h, tile_w.
template <class Run, class... Where>
void def_paste(py::module_& m, Run run) {
  m.def("paste", [run](uintptr_t clean, uintptr_t crops, uintptr_t out, uintptr_t image,
                       uintptr_t row, uintptr_t col, uintptr_t rows, uintptr_t cols,
                       const std::array<int64_t, 8>& sizes, bool one_crop, double pad, int type,
                       Where... where) {
    const PasteCall call{at<const void>(clean),
                         at<const void>(crops),
                         at(out),
                         at<const int32_t>(image),
                         at<const int32_t>(row),
                         at<const int32_t>(col),
                         at<const Along>(rows),
                         at<const Along>(cols),
                         sizes[0],
                         sizes[1],
                         sizes[2],
                         sizes[3],
                         sizes[4],
                         sizes[5],
                         sizes[6],
                         sizes[7],
                         one_crop,
                         pad,
                         DType(type)};
    py::gil_scoped_release released;
    run(call, where...);
  });
}

}  // namespace sdsgsm
