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

template <class T>
float rounded(float value) {
  T held;
  store(&held, value);
  return load(&held);
}

// The fill as a pixel would come out: rounded to the images' type, normalised.
template <class C>
C filled(const OccludeCall& call, int64_t c) {
  C value = C(call.fill[c]);
  if (call.image_type == DType::float16) value = C(rounded<Half>(float(value)));
  if (call.image_type == DType::bfloat16) value = C(rounded<BFloat16>(float(value)));
  return normalised(value, C(call.mean[c]), C(call.std[c]));
}

template <class C>
void occlude_image(const OccludeCall& call, int64_t copy) {
  const int64_t height = call.grid.height, width = call.grid.width, channels = call.channels;
  const int64_t step = call.channels_last ? channels : 1, size = channels * height * width;
  const int64_t image = copy / call.count * size;
  const Window w = window_at(call.grid, call.first + copy % call.count);
  for (int64_t c = 0; c < channels; ++c) {
    C fill[kBlock];
    for (C& value : fill) value = filled<C>(call, c);
    for (int64_t y = 0; y < height; ++y) {
      const int64_t row = call.channels_last ? y * width * channels + c : (c * height + y) * width;
      const int64_t out = copy * size + row;
      copy_row(call, image + (c * height + y) * width, out, step, C(call.mean[c]), C(call.std[c]));
      if (y < w.top || y >= w.bottom) continue;
      for (int64_t x = w.left; x < w.right; x += kBlock)
        stored(fill, call.out, call.out_type, out + x * step, smaller(kBlock, w.right - x), step);
    }
  }
}

template <class C>
void occlude_batch(const OccludeCall& call) {
  const int64_t copies = call.batch * call.count;
  const int64_t size = call.channels * call.grid.height * call.grid.width;
  const int team = workers(call.threads, copies, copies * size);
  parallel_for(team, copies, [&](int64_t copy) { occlude_image<C>(call, copy); });
}

void occlude(const OccludeCall& call) {
  if (call.image_type == DType::float64) return occlude_batch<double>(call);
  occlude_batch<float>(call);
}
