// Equation 2 for a batch.

template <class T>
void window_mean_of(const WindowMeanCall& call, int threads) {
  const WindowGrid& g = call.grid;
  const int team = workers(threads, call.batch, call.batch * g.height * g.width);
  parallel_for(team, call.batch, [&](int64_t b) {
    const T* scores = static_cast<const T*>(call.scores) + b * g.rows * g.cols;
    T* out = static_cast<T*>(call.out) + b * g.height * g.width;
    for (int64_t y = 0; y < g.height; ++y)
      for (int64_t x = 0; x < g.width; ++x) out[y * g.width + x] = mean_at(scores, g, y, x);
  });
}

void window_mean(const WindowMeanCall& call, int threads) {
  if (call.type == DType::float64) return window_mean_of<double>(call, threads);
  window_mean_of<float>(call, threads);
}
