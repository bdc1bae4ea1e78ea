// Zeroed-out copies of a batch of images, normalised and converted on the way.

// One row of one channel, normalised. `step` is the distance of two pixels in the output.
template <class C, class T, class O>
SDSGSM_HD void copy_row(const T* from, O* to, int64_t width, int64_t step, C mean, C std) {
  if (step == 1) {
    for (int64_t x = 0; x < width; ++x) store(to + x, normalised(C(load(from + x)), mean, std));
  } else {
    for (int64_t x = 0; x < width; ++x)
      store(to + x * step, normalised(C(load(from + x)), mean, std));
  }
}

template <class T, class O>
SDSGSM_HD void occlude_image(const OccludeCall& call, const T* image, O* out, const Window& w) {
  using C = Compute<T>;
  const int64_t height = call.grid.height, width = call.grid.width, channels = call.channels;
  const int64_t step = call.channels_last ? channels : 1;
  for (int64_t c = 0; c < channels; ++c) {
    const C mean = C(call.mean[c]), std = C(call.std[c]);
    O filled;
    // Rounded as the pixels are: to the image's type first, then normalised.
    T fill;
    store(&fill, C(call.fill[c]));
    store(&filled, normalised(C(load(&fill)), mean, std));
    for (int64_t y = 0; y < height; ++y) {
      O* row = out + (call.channels_last ? y * width * channels + c : (c * height + y) * width);
      copy_row(image + (c * height + y) * width, row, width, step, mean, std);
      if (y < w.top || y >= w.bottom) continue;
      for (int64_t x = w.left; x < w.right; ++x) row[x * step] = filled;
    }
  }
}

template <class T, class O>
void occlude_batch(const OccludeCall& call) {
  const int64_t size = call.channels * call.grid.height * call.grid.width;
#pragma omp parallel for schedule(static) num_threads(call.threads) if (call.threads > 1)
  for (int64_t i = 0; i < call.batch * call.count; ++i) {
    const T* image = static_cast<const T*>(call.images) + i / call.count * size;
    const Window window = window_at(call.grid, call.first + i % call.count);
    occlude_image(call, image, static_cast<O*>(call.out) + i * size, window);
  }
}

template <class T>
void occlude_into(const OccludeCall& call) {
  switch (call.out_type) {
    case DType::float32: return occlude_batch<T, float>(call);
    case DType::float64: return occlude_batch<T, double>(call);
    case DType::float16: return occlude_batch<T, Half>(call);
    case DType::bfloat16: return occlude_batch<T, BFloat16>(call);
  }
}

void occlude(const OccludeCall& call) {
  switch (call.image_type) {
    case DType::float32: return occlude_into<float>(call);
    case DType::float64: return occlude_into<double>(call);
    case DType::float16: return occlude_into<Half>(call);
    case DType::bfloat16: return occlude_into<BFloat16>(call);
  }
}
