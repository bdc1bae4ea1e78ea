// The largest error of the CUDA kernels' tanh, in units in the last place, over every `step`-th float,
// whatever the hardware's approximations do within what PTX documents of them.
#include <cuda_runtime.h>

#include "../../csrc/cuda/tanh.cuh"

using namespace sdsgsm;

static double ulps(float found, double exact) {
  int exponent;
  frexp(exact, &exponent);
  return fabs(double(found) - exact) / ldexp(1.0, exponent - 24);
}

int main(int, char** arguments) {
  const uint32_t step = uint32_t(atoi(arguments[1]));
  const uint32_t first = bits_of(0x1p-13f), last = bits_of(12.0f);
  double worst = 0.0;
  for (uint32_t bits = first; bits <= last; bits += step) {
    const float x = float_of(bits);
    const double exact = tanh(double(x));
    for (int corner = 0; corner < (x < 1.25f ? 1 : 4); ++corner) {
      exp2_error = (corner & 1 ? 1 : -1) * exp2(-22.5);
      reciprocal_error = (corner & 2 ? 1 : -1) * 0x1p-23;
      worst = fmax(worst, ulps(cuda::smooth_fast(x), exact));
    }
  }
  const float special[] = {0.0f, 0x1p-149f, 0x1p-126f, 0x1p-20f, 20.0f, 3e38f, INFINITY};
  for (const float x : special)
    if (cuda::smooth_fast(x) != float(tanh(double(x))) || cuda::smooth_fast(-x) != -cuda::smooth_fast(x))
      worst = 1e9;
  if (cuda::smooth_fast(NAN) != 1.0f || !std::signbit(cuda::smooth_fast(-0.0f))) worst = 1e9;
  printf("%.4f\n", worst);
}
