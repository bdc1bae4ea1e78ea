// The update's last step in the hardware's own instructions: tanh, and a clip.
#pragma once
#include "../update.h"

namespace sdsgsm::cuda {

#ifndef CUDA_ON_CPU  // which has its own, with errors to choose
// 2^x, off by a factor of at most 1 ± 2^-22.5 (PTX: ex2.approx).
__device__ __forceinline__ float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / x, off by a factor of at most 1 ± 2^-23 (PTX: rcp.approx).
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The larger and the smaller; NaN where one is.
__device__ __forceinline__ float larger_or_nan(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
__device__ __forceinline__ float smaller_or_nan(float a, float b) {
  float c;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
#endif

// tanh within 2 ulp, whatever the errors of the two approximations above: an odd minimax polynomial
// (2^-26.5) near 0, and 1 − 2 / (exp(2|x|) + 1) beyond 1.25, where errors of the exponential hardly
// count. As `smooth` of update.h it takes NaN for a large number.
__device__ __forceinline__ float smooth_fast(float x) {
  const float magnitude = fabsf(x), square = magnitude * magnitude;
  float p = 5.81428114184e-5f;
  p = fmaf(p, square, -5.47999487849e-4f);
  p = fmaf(p, square, 2.52201586186e-3f);
  p = fmaf(p, square, -8.04082904936e-3f);
  p = fmaf(p, square, 2.14780353129e-2f);
  p = fmaf(p, square, -5.38614726446e-2f);
  p = fmaf(p, square, 1.33318924698e-1f);
  p = fmaf(p, square, -3.33332657930e-1f);
  const float near = fmaf(p * square, magnitude, magnitude);
  const float power = approximate_exp2(fminf(magnitude * 2.88539008177792681f, 30.0f));
  const float far = fmaf(-2.0f, approximate_reciprocal(power + 1.0f), 1.0f);
  return copysignf(magnitude < 1.25f ? near : far, x);
}
__device__ __forceinline__ double smooth_fast(double x) { return smooth(x); }

// Equation 7's clip. NaN comes through from the image, and gives way to the lowest value if it is
// in `moved` only: what the comparisons of `stepped` in update.h do.
__device__ __forceinline__ float clipped(float moved, float image, float budget, float lo, float hi) {
  const float lowest = larger_or_nan(lo, image - budget);
  const float highest = smaller_or_nan(hi, image + budget);
  return smaller_or_nan(fmaxf(moved, lowest), highest);
}
__device__ __forceinline__ double clipped(double moved, double image, double budget, double lo,
                                          double hi) {
  return smaller(larger(moved, larger(lo, image - budget)), smaller(hi, image + budget));
}

}  // namespace sdsgsm::cuda
