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

// exp(y) for 0 <= y <= 20: y = n·ln 2 + r with |r| <= ln 2 / 2, a polynomial in r, then 2^n.
SDSGSM_HD float exp_moderate(float y) {
  const float n = float(int(y * 1.44269504088896341f + 0.5f));
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * float_of(uint32_t(int(n) + 127) << 23);
}

// 1 / d for a normal d > 0, to half an ulp or so: a guess from the exponent and three Newton steps
// take a third of the cycles of a vector division.
SDSGSM_HD float reciprocal(float d) {
  float r = float_of(0x7ef311c7u - bits_of(d));
  r = r * (2.0f - d * r);
  r = r * (2.0f - d * r);
  return r * (2.0f - d * r);
}

// tanh without branches, so that loops over it vectorise: an odd polynomial near 0, where
// 1 - 2 / (exp(2|x|) + 1) would cancel, and that expression elsewhere (constants: Cephes).
SDSGSM_HD float smooth(float x) {
  const uint32_t sign = bits_of(x) & 0x80000000u;
  const float magnitude = float_of(bits_of(x) ^ sign);
  const float square = magnitude * magnitude;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float near = p * square * magnitude + magnitude;
  const float far = 1.0f - 2.0f * reciprocal(exp_moderate(2.0f * smaller(magnitude, 10.0f)) + 1.0f);
  const uint32_t pick = 0u - uint32_t(magnitude < 0.625f);  // a ternary would become a branch
  return float_of((bits_of(near) & pick) | (bits_of(far) & ~pick) | sign);
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
