// Windows and the zero-out operator: METHOD.md, section 1.
#pragma once
#include "common.h"

namespace sdsgsm {

// Window k covers rows [top, bottom) and columns [left, right).
struct Window {
  int64_t top, bottom, left, right;
};

struct WindowGrid {
  int64_t height, width, patch_h, patch_w, stride_h, stride_w, rows, cols;
};

SDSGSM_HD Window window_at(const WindowGrid& g, int64_t k) {
  const int64_t top = k / g.cols * g.stride_h, left = k % g.cols * g.stride_w;
  const int64_t bottom = top + g.patch_h, right = left + g.patch_w;
  return {top, bottom < g.height ? bottom : g.height, left, right < g.width ? right : g.width};
}

// The windows that cover position `at` along one axis: first … last, both included.
SDSGSM_HD int64_t first_covering(int64_t at, int64_t patch, int64_t stride) {
  return at < patch ? 0 : (at - patch) / stride + 1;
}
SDSGSM_HD int64_t last_covering(int64_t at, int64_t stride, int64_t count) {
  const int64_t last = at / stride;
  return last < count ? last : count - 1;
}

// The model's own normalisation, applied after the zero-out.
template <class T>
SDSGSM_HD T normalised(T value, T mean, T std) {
  return (value - mean) / std;
}

// A value as an element of type T would hold it.
template <class T>
SDSGSM_HD float through(float value) {
  T held;
  store(&held, value);
  return load(&held);
}

// The fill as a pixel would come out: rounded to the images' type, normalised.
template <class T>
SDSGSM_HD T filled(DType type, T fill, T mean, T std) {
  if (type == DType::float16) fill = T(through<Half>(float(fill)));
  if (type == DType::bfloat16) fill = T(through<BFloat16>(float(fill)));
  return normalised(fill, mean, std);
}

// Equation 2 for one pixel. Summed in double and in row-major order of the windows, as the
// reference does it: pixels under the same windows get the same bits, so ties in the ranking are
// ties on every backend.
template <class T>
SDSGSM_HD T mean_at(const T* scores, const WindowGrid& g, int64_t y, int64_t x) {
  const int64_t top = first_covering(y, g.patch_h, g.stride_h);
  const int64_t bottom = last_covering(y, g.stride_h, g.rows);
  const int64_t left = first_covering(x, g.patch_w, g.stride_w);
  const int64_t right = last_covering(x, g.stride_w, g.cols);
  double sum = 0.0;
  for (int64_t i = top; i <= bottom; ++i)
    for (int64_t j = left; j <= right; ++j) sum += double(scores[i * g.cols + j]);
  return T(sum / double((bottom - top + 1) * (right - left + 1)));
}

}  // namespace sdsgsm
