// Equation 2: a pixel's value is the mean score of the windows that cover it.

// Summed in double and in row-major order of the windows, as the reference does it: pixels under
// the same windows get the same bits, so ties in the ranking are ties on every backend.
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

template <class T>
void window_mean_of(const WindowMeanCall& call) {
  const WindowGrid& g = call.grid;
  const int team = workers(call.threads, call.batch, call.batch * g.height * g.width);
  parallel_for(team, call.batch, [&](int64_t b) {
    const T* scores = static_cast<const T*>(call.scores) + b * g.rows * g.cols;
    T* out = static_cast<T*>(call.out) + b * g.height * g.width;
    for (int64_t y = 0; y < g.height; ++y)
      for (int64_t x = 0; x < g.width; ++x) out[y * g.width + x] = mean_at(scores, g, y, x);
  });
}

void window_mean(const WindowMeanCall& call) {
  if (call.type == DType::float64) return window_mean_of<double>(call);
  window_mean_of<float>(call);
}
