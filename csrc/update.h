// One element of the masked, tanh-smoothed update: METHOD.md, equations 3 and 5 to 7.
#pragma once
#include <cmath>

#include "common.h"

namespace sdsgsm {

enum class Normalize : int { none = 0, mean_abs = 1, max_abs = 2, rms = 3 };

// The settings of one image. `alpha` bears the sign of the step, + to ascend the loss; `inverse_norm`
// is 1 / max(N, 1e-20); `gain` is infinite for sign.
template <class T>
struct UpdateSettings {
  T eps, alpha, background, inverse_norm, decay, gain, lo, hi;
};

// N of equation 5 from what was reduced over an image of n values: the largest |g|, or the sum of
// |g| or of g². Its inverse, since kernels multiply.
SDSGSM_HD double inverse_norm(Normalize normalize, double reduced, int64_t n) {
  double norm = reduced;
  if (normalize == Normalize::none) norm = 1.0;
  if (normalize == Normalize::mean_abs) norm = reduced / double(n);
  if (normalize == Normalize::rms) norm = sqrt(reduced / double(n));
  return 1.0 / (norm > 1e-20 ? norm : 1e-20);
}

template <class T>
SDSGSM_HD T larger(T a, T b) {
  return a > b ? a : b;
}
template <class T>
SDSGSM_HD T smaller(T a, T b) {
  return a < b ? a : b;
}

template <class T>
SDSGSM_HD T sign_of(T value) {
  return T(value > T(0)) - T(value < T(0));
}

// tanh without branches, so that loops over it vectorise: E / (E + 2), where E = exp(2|x|) - 1 has no
// cancellation. With |x| = n·ln(2)/2 + r it is 2ⁿ·q + (2ⁿ - 1), where q = exp(2r) - 1 is a polynomial.
// All is scaled by 3/4: then E + 2 lies below a power of two where x is small, which rounds it finer.
SDSGSM_HD float smooth(float x) {
  const uint32_t sign = bits_of(x) & 0x80000000u;
  const float magnitude = smaller(float_of(bits_of(x) ^ sign), 10.0f);
  // The addend leaves 127 + n in the lowest bits, where the exponent's are of 2ⁿ.
  const float addend = 12582912.0f + 127.0f, t = magnitude * 2.8853900817779268f + addend;
  const float power = float_of(bits_of(t) << 23), r = magnitude - (t - addend) * 0.34657359027997264f;
  float p = 0.0190521199f;
  p = p * r + 0.0669199675f;
  p = p * r + 0.200001404f;
  p = p * r + 0.499996185f;
  p = p * r + 1.0f;
  p = p * r + 1.5f;
  const float q = 2.0f * r + (r * r * p - 0.5f * r);  // 1.5 · r rounded finer, where there is no fma
  const float e = power * q + (power * 0.75f - 0.75f);
  return float_of(bits_of(e / (e + 1.5f)) | sign);
}

SDSGSM_HD double smooth(double x) { return tanh(x); }

// Equation 3: the share of ε and α that a pixel of domain value m receives.
template <class T>
SDSGSM_HD T allocation(T background, T m) {
  return background + (T(1) - background) * m;
}

// Equation 5, which is equation 6 where there is no momentum yet.
template <class T>
SDSGSM_HD T started(T grad, const UpdateSettings<T>& s) {
  return grad * s.inverse_norm;
}

// Equation 6.
template <class T>
SDSGSM_HD T velocity(T grad, T momentum, const UpdateSettings<T>& s) {
  return s.decay * momentum + started(grad, s);
}

// The direction of equation 7. `Sign` is the limit κ = ∞, known per call so that loops carry no
// branch.
template <bool Sign, class T>
SDSGSM_HD T direction(T v, const UpdateSettings<T>& s) {
  return Sign ? sign_of(v) : smooth(s.gain * v);
}

// Equation 7 before its clip: where a pixel would go, and how far from the image it may be.
template <class T>
struct Moved {
  T value, budget;
};

template <class T>
SDSGSM_HD Moved<T> moved_by(T adv, T m, T direction, const UpdateSettings<T>& s) {
  const T weight = allocation(s.background, m);
  return {adv + s.alpha * weight * direction, s.eps * weight};
}

// Equation 7.
template <class T>
SDSGSM_HD T stepped(T adv, T image, T m, T direction, const UpdateSettings<T>& s) {
  const Moved<T> moved = moved_by(adv, m, direction, s);
  const T lowest = larger(s.lo, image - moved.budget);
  const T highest = smaller(s.hi, image + moved.budget);
  return smaller(larger(moved.value, lowest), highest);
}

}  // namespace sdsgsm
