// The update of a batch: a reduction over each image's gradient, then one pass over its elements.

constexpr int64_t kBlock = 512;  // elements that a pass converts and computes at a time, on the stack

// Elements as compute values: converted into `buffer`, or in place where they are that already.
template <class C, class T>
SDSGSM_HD const C* loaded(const T* from, int64_t n, C* buffer) {
  for (int64_t i = 0; i < n; ++i) buffer[i] = C(load(from + i));
  return buffer;
}
SDSGSM_HD const float* loaded(const float* from, int64_t, float*) { return from; }
SDSGSM_HD const double* loaded(const double* from, int64_t, double*) { return from; }

// N of equation 5 for one image. Blocks are summed in order and in double: the result depends on
// the image alone, and squares of tiny gradients do not underflow.
template <class C, class G>
SDSGSM_HD double norm_of(const G* grad, int64_t n, Normalize kind) {
  if (kind == Normalize::none || n == 0) return 1.0;
  C buffer[kBlock];
  double total = 0.0;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = smaller(kBlock, n - start);
    const C* g = loaded(grad + start, size, buffer);
    if (kind == Normalize::mean_abs) {
      C sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < size; ++i) sum += g[i] < 0 ? -g[i] : g[i];
      total += double(sum);
    } else if (kind == Normalize::max_abs) {
      C most = 0;
#pragma omp simd reduction(max : most)
      for (int64_t i = 0; i < size; ++i) most = larger(most, g[i] < 0 ? -g[i] : g[i]);
      total = larger(total, double(most));
    } else {
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < size; ++i) sum += double(g[i]) * double(g[i]);
      total += sum;
    }
  }
  if (kind == Normalize::max_abs) return total;
  return kind == Normalize::mean_abs ? total / double(n) : __builtin_sqrt(total / double(n));
}

// The domain of elements start … start + n - 1 of an image, in the order of its elements.
template <class C>
SDSGSM_HD const C* domain_of(const C* domain, int64_t start, int64_t n, const UpdateCall& call,
                             C* buffer) {
  if (!domain) {
    for (int64_t i = 0; i < n; ++i) buffer[i] = C(1);
  } else if (call.channels_last) {
    int64_t pixel = start / call.channels, channel = start % call.channels;
    for (int64_t i = 0; i < n; ++i) {
      buffer[i] = domain[pixel];
      if (++channel == call.channels) channel = 0, ++pixel;
    }
  } else {
    int64_t pixel = start % call.pixels;
    if (pixel + n <= call.pixels) return domain + pixel;
    for (int64_t i = 0; i < n; ++i) {
      buffer[i] = domain[pixel];
      if (++pixel == call.pixels) pixel = 0;
    }
  }
  return buffer;
}

template <bool Sign, class T, class G, class C>
SDSGSM_HD void step_image(const UpdateCall& call, int64_t b, const UpdateSettings<C>& s) {
  const int64_t n = call.channels * call.pixels, offset = b * n;
  const T* adv = static_cast<const T*>(call.adv) + offset;
  const T* images = static_cast<const T*>(call.images) + offset;
  const G* grad = static_cast<const G*>(call.grad) + offset;
  T* adv_out = static_cast<T*>(call.adv_out) + offset;
  const C* domain = call.domain ? static_cast<const C*>(call.domain) + b * call.pixels : nullptr;
  const C* momentum = call.momentum ? static_cast<const C*>(call.momentum) + offset : nullptr;
  C* momentum_out = call.momentum_out ? static_cast<C*>(call.momentum_out) + offset : nullptr;
  C a_buffer[kBlock], x_buffer[kBlock], g_buffer[kBlock], m_buffer[kBlock], v[kBlock], out[kBlock];
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = smaller(kBlock, n - start);
    const C* a = loaded(adv + start, size, a_buffer);
    const C* x = loaded(images + start, size, x_buffer);
    const C* g = loaded(grad + start, size, g_buffer);
    const C* m = domain_of(domain, start, size, call, m_buffer);
    if (momentum) {
      for (int64_t i = 0; i < size; ++i) v[i] = velocity(g[i], momentum[start + i], s);
    } else {
      for (int64_t i = 0; i < size; ++i) v[i] = velocity(g[i], C(0), s);
    }
    if (momentum_out) memcpy(momentum_out + start, v, size_t(size) * sizeof(C));
    for (int64_t i = 0; i < size; ++i) out[i] = stepped<Sign>(a[i], x[i], m[i], v[i], s);
    for (int64_t i = 0; i < size; ++i) store(adv_out + start + i, out[i]);
  }
}

// An inactive image keeps its pixels and its momentum.
template <class T, class C>
SDSGSM_HD void keep_image(const UpdateCall& call, int64_t b) {
  const int64_t n = call.channels * call.pixels, offset = b * n;
  if (call.adv_out != call.adv)
    memcpy(static_cast<T*>(call.adv_out) + offset, static_cast<const T*>(call.adv) + offset,
           size_t(n) * sizeof(T));
  if (!call.momentum_out || call.momentum_out == call.momentum) return;
  C* kept = static_cast<C*>(call.momentum_out) + offset;
  if (call.momentum)
    memcpy(kept, static_cast<const C*>(call.momentum) + offset, size_t(n) * sizeof(C));
  else
    memset(kept, 0, size_t(n) * sizeof(C));
}

template <class T, class G>
void update_batch(const UpdateCall& call) {
  using C = Compute<T>;
  const int64_t n = call.channels * call.pixels;
#pragma omp parallel for schedule(static) num_threads(call.threads) if (call.threads > 1)
  for (int64_t b = 0; b < call.batch; ++b) {
    if (call.active && !call.active[b]) {
      keep_image<T, C>(call, b);
      continue;
    }
    const double norm = norm_of<C>(static_cast<const G*>(call.grad) + b * n, n, call.normalize);
    const UpdateSettings<C> s{C(call.eps[b]), C(call.alpha[b]), C(call.background[b]),
                              C(1.0 / larger(norm, 1e-20)), C(call.decay), C(call.gain),
                              C(call.lo), C(call.hi), C(call.sign)};
    if (__builtin_isinf(call.gain))
      step_image<true, T, G>(call, b, s);
    else
      step_image<false, T, G>(call, b, s);
  }
}

template <class T>
void update_images(const UpdateCall& call) {
  switch (call.grad_type) {
    case DType::float32: return update_batch<T, float>(call);
    case DType::float64: return update_batch<T, double>(call);
    case DType::float16: return update_batch<T, Half>(call);
    case DType::bfloat16: return update_batch<T, BFloat16>(call);
  }
}

void update(const UpdateCall& call) {
  switch (call.image_type) {
    case DType::float32: return update_images<float>(call);
    case DType::float64: return update_images<double>(call);
    case DType::float16: return update_images<Half>(call);
    case DType::bfloat16: return update_images<BFloat16>(call);
  }
}
