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

}  // namespace sdsgsm
