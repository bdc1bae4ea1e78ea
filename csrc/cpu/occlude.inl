// Zeroed-out copies of a batch of images, normalised and converted on the way.

// Normalise one row of one channel into the output, `step` elements from pixel to pixel.
template <class C>
void copy_row(const OccludeCall& call, int64_t from, int64_t to, int64_t step, C mean, C std) {
  C x_buffer[kBlock], o[kBlock];
  for (int64_t start = 0; start < call.grid.width; start += kBlock) {
    const int64_t size = smaller(kBlock, call.grid.width - start);
    const C* x = loaded(call.images, call.image_type, from + start, size, x_buffer);
    C* out = step == 1 ? target(call.out, call.out_type, to + start, o) : o;
    for (int64_t i = 0; i < size; ++i) out[i] = normalised(x[i], mean, std);
    if (out == o) stored(out, call.out, call.out_type, to + start * step, size, step);
  }
}

// One row of pixels, clean, of image b: into the place of the image's first copy.
template <class C>
void clean_row(const OccludeCall& call, int64_t b, int64_t y) {
  const int64_t height = call.grid.height, width = call.grid.width, channels = call.channels;
  const int64_t step = call.channels_last ? channels : 1, size = channels * height * width;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t from = b * size + (c * height + y) * width;
    const int64_t row = call.channels_last ? y * width * channels + c : (c * height + y) * width;
    copy_row(call, from, b * call.count * size + row, step, C(call.mean[c]), C(call.std[c]));
  }
}

// Fill the window of a copy.
template <class C>
void fill_window(const OccludeCall& call, int64_t copy) {
  const int64_t height = call.grid.height, width = call.grid.width, channels = call.channels;
  const int64_t step = call.channels_last ? channels : 1, start = copy * channels * height * width;
  const Window w = window_at(call.grid, call.first + copy % call.count);
  for (int64_t c = 0; c < channels; ++c) {
    C fill[kBlock];
    const int64_t most = smaller(kBlock, w.right - w.left);
    for (int64_t i = 0; i < most; ++i) fill[i] = filled(call.image_type, C(call.fill[c]), C(call.mean[c]), C(call.std[c]));
    for (int64_t y = w.top; y < w.bottom; ++y) {
      const int64_t row = call.channels_last ? y * width * channels + c : (c * height + y) * width;
      for (int64_t x = w.left; x < w.right; x += most)
        stored(fill, call.out, call.out_type, start + row + x * step, smaller(most, w.right - x),
               step);
    }
  }
}

// The clean image is normalised, converted and laid out once; its copies are copies of memory.
template <class C>
void occlude_batch(const OccludeCall& call, int threads) {
  const int64_t copies = call.batch * call.count, height = call.grid.height;
  const int64_t size = call.channels * height * call.grid.width;
  const int64_t bytes = size * size_of(call.out_type);
  parallel_for(workers(threads, call.batch * height, call.batch * size), call.batch * height,
               [&](int64_t row) { clean_row<C>(call, row / height, row % height); });
  parallel_for(workers(threads, copies, copies * size), copies, [&](int64_t copy) {
    if (copy % call.count == 0) return;  // still the source of the others
    char* out = static_cast<char*>(call.out);
    memcpy(out + copy * bytes, out + copy / call.count * call.count * bytes, size_t(bytes));
    fill_window<C>(call, copy);
  });
  for (int64_t b = 0; b < call.batch; ++b) fill_window<C>(call, b * call.count);
}

void occlude(const OccludeCall& call, int threads) {
  if (call.image_type == DType::float64) return occlude_batch<double>(call, threads);
  occlude_batch<float>(call, threads);
}
