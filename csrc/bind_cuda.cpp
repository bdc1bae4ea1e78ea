// Python bindings of the CUDA kernels. Loading the module asks nothing of a driver.
#include "bind.h"
#include "cuda/launch.h"

using namespace sdsgsm;

PYBIND11_MODULE(_native_cuda, m) {
  m.attr("interface") = kInterface;
  m.doc() = "CUDA kernels of sdsgsm_fast: raw addresses, a device and its stream in, nothing out.";
  def_update<decltype(&cuda::update), int, uintptr_t, uintptr_t>(m, &cuda::update);
  def_occlude<decltype(&cuda::occlude), int, uintptr_t>(m, &cuda::occlude);
  def_window_mean<decltype(&cuda::window_mean), int, uintptr_t>(m, &cuda::window_mean);
  def_paste<decltype(&cuda::paste), int, uintptr_t>(m, &cuda::paste);
  m.def("update_scratch", [](int64_t batch, int64_t values, int image_type, int device) {
    return cuda::update_scratch(batch, values, DType(image_type), device);
  });
}
