// The update of a batch: a reduction over each image's gradient, then one pass over its elements.

// Sum of |g| of a block: in its own type, and again in double where that overflows.
template <class C>
double sum_abs(const C* g, int64_t n) {
  C sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += g[i] < 0 ? -g[i] : g[i];
  if (!__builtin_isinf(sum)) return double(sum);
  double exact = 0;
  for (int64_t i = 0; i < n; ++i) exact += double(g[i] < 0 ? -g[i] : g[i]);
  return exact;
}

// N of equation 5 for one image. The blocks' sums are added in order and in double: the result depends on
// the image alone, and neither sums overflow nor squares of tiny gradients underflow.
template <class C>
double norm_of(const UpdateCall& call, int64_t b) {
  const int64_t n = call.channels * call.pixels;
  if (call.normalize == Normalize::none || n == 0) return 1.0;
  C buffer[kBlock];
  double total = 0.0;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = smaller(kBlock, n - start);
    const C* g = loaded(call.grad, call.grad_type, b * n + start, size, buffer);
    if (call.normalize == Normalize::mean_abs) {
      total += sum_abs(g, size);
    } else if (call.normalize == Normalize::max_abs) {
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
  if (call.normalize == Normalize::max_abs) return total;
  const double mean = total / double(n);
  return call.normalize == Normalize::mean_abs ? mean : __builtin_sqrt(mean);
}

// The domain of elements start … start + n - 1 of an image, in the order of its elements.
template <class C>
const C* domain_of(const UpdateCall& call, int64_t b, int64_t start, int64_t n, C* buffer) {
  const C* domain = static_cast<const C*>(call.domain) + b * call.pixels;
  if (!call.domain) {
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

template <bool Sign, class C>
void step_image(const UpdateCall& call, int64_t b, const UpdateSettings<C>& s) {
  const int64_t n = call.channels * call.pixels, offset = b * n;
  const C* momentum = static_cast<const C*>(call.momentum);
  C* momentum_out = static_cast<C*>(call.momentum_out);
  C a_buffer[kBlock], x_buffer[kBlock], g_buffer[kBlock], m_buffer[kBlock], v[kBlock], o[kBlock];
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = smaller(kBlock, n - start), at = offset + start;
    const C* a = loaded(call.adv, call.image_type, at, size, a_buffer);
    const C* x = loaded(call.images, call.image_type, at, size, x_buffer);
    const C* g = loaded(call.grad, call.grad_type, at, size, g_buffer);
    const C* m = domain_of(call, b, start, size, m_buffer);
    C* out = target(call.adv_out, call.image_type, at, o);
    if (momentum || momentum_out) {
      for (int64_t i = 0; i < size; ++i)
        v[i] = velocity(g[i], momentum ? momentum[at + i] : C(0), s);
      if (momentum_out) memcpy(momentum_out + at, v, size_t(size) * sizeof(C));
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) out[i] = stepped<Sign>(a[i], x[i], m[i], v[i], s);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i)
        out[i] = stepped<Sign>(a[i], x[i], m[i], velocity(g[i], C(0), s), s);
    }
    if (out == o) stored(out, call.adv_out, call.image_type, at, size);
  }
}

// An inactive image keeps its pixels and its momentum.
template <class C>
void keep_image(const UpdateCall& call, int64_t b) {
  const int64_t n = call.channels * call.pixels;
  const auto copy = [=](const void* from, void* to, int64_t width) {
    if (!to || to == from) return;
    char* place = static_cast<char*>(to) + b * n * width;
    if (from)
      memcpy(place, static_cast<const char*>(from) + b * n * width, size_t(n * width));
    else
      memset(place, 0, size_t(n * width));
  };
  copy(call.adv, call.adv_out, size_of(call.image_type));
  copy(call.momentum, call.momentum_out, sizeof(C));
}

template <class C>
void update_batch(const UpdateCall& call) {
  const int team = workers(call.threads, call.batch, call.batch * call.channels * call.pixels);
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
  for (int64_t b = 0; b < call.batch; ++b) {
    if (call.active && !call.active[b]) {
      keep_image<C>(call, b);
      continue;
    }
    const UpdateSettings<C> s{call.eps.at<C>(b), call.alpha.at<C>(b),
                              call.background.at<C>(b),
                              C(1.0 / larger(norm_of<C>(call, b), 1e-20)), C(call.decay),
                              C(call.gain), C(call.lo), C(call.hi), C(call.sign)};
    if (__builtin_isinf(call.gain))
      step_image<true>(call, b, s);
    else
      step_image<false>(call, b, s);
  }
}

void update(const UpdateCall& call) {
  if (call.image_type == DType::float64) return update_batch<double>(call);
  update_batch<float>(call);
}
