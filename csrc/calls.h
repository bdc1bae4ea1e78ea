// What Python hands over: plain pointers and sizes, checked there.
#pragma once
#include "occlude.h"
#include "update.h"

namespace sdsgsm {

// A value for each image in the compute type, or one for all where `values` is null.
struct PerImage {
  const void* values;
  double value;
};

// All image-like arrays are dense, in one common order: (B, C, HW), or (B, HW, C) if channels_last.
struct UpdateCall {
  const void* adv;
  void* adv_out;  // may be `adv` itself
  const void* images;
  const void* grad;
  const void* domain;    // (B, HW) in the compute type; null: all ones
  const void* momentum;  // compute type; null: zero
  void* momentum_out;    // null: not kept; may be `momentum` itself
  const uint8_t* active;  // (B,); null: all
  PerImage eps, alpha, background;
  int64_t batch, channels, pixels;
  bool channels_last;
  DType image_type, grad_type;
  double gain, decay, lo, hi, sign;
  Normalize normalize;
};

struct OccludeCall {
  const void* images;  // (B, C, H, W), contiguous
  void* out;           // (B·count, C, H, W), contiguous or channels_last
  const double *fill, *mean, *std;  // (C,), in the memory of whoever reads them
  int64_t batch, channels, first, count;
  WindowGrid grid;
  bool channels_last;
  DType image_type, out_type;
};

struct WindowMeanCall {
  const void* scores;  // (B, rows, cols)
  void* out;           // (B, H, W)
  int64_t batch;
  WindowGrid grid;
  DType type;  // float32 or float64
};

template <class C>
SDSGSM_HD C value_for(const PerImage& setting, int64_t b) {
  return setting.values ? static_cast<const C*>(setting.values)[b] : C(setting.value);
}

// The settings of image b, given 1 / N of equation 5.
template <class C>
SDSGSM_HD UpdateSettings<C> settings_of(const UpdateCall& call, int64_t b, double inverse_norm) {
  return {value_for<C>(call.eps, b), value_for<C>(call.alpha, b) * C(call.sign),
          value_for<C>(call.background, b), C(inverse_norm), C(call.decay), C(call.gain),
          C(call.lo), C(call.hi)};
}

}  // namespace sdsgsm
