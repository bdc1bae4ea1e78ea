// The update of a batch: a reduction over each image's gradient, then one pass over its elements.

// Images of at most so many elements have the next one's gradient fetched meanwhile.
constexpr int64_t kAhead = 65536;

// Sum of |g| of a block: in its own type, and again in double where that overflows. Each quarter has a
// sum of its own, so that additions need not wait for each other.
template <class C>
double sum_abs(const C* g, int64_t n) {
  const int64_t part = n / 4;
  C a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (int64_t i = 0; i < part; ++i) {
    const C *second = g + part, *third = second + part, *fourth = third + part;
    a += g[i] < 0 ? -g[i] : g[i];
    b += second[i] < 0 ? -second[i] : second[i];
    c += third[i] < 0 ? -third[i] : third[i];
    d += fourth[i] < 0 ? -fourth[i] : fourth[i];
  }
  C sum = (a + b) + (c + d);
  for (int64_t i = 4 * part; i < n; ++i) sum += g[i] < 0 ? -g[i] : g[i];
  if (!__builtin_isinf(sum)) return double(sum);
  double exact = 0;
  for (int64_t i = 0; i < n; ++i) exact += double(g[i] < 0 ? -g[i] : g[i]);
  return exact;
}

// An image is cut into chunks. Threads share them where there are fewer images than threads; their
// sums are added in order and in double, so that the result depends on the image alone.
constexpr int64_t kMaxChunks = 512;

struct Chunks {
  int64_t values, size, count;  // of the image, of a chunk; the last one may be shorter
  int64_t at(int64_t k) const { return k * size; }
  int64_t length(int64_t k) const { return smaller(size, values - at(k)); }
};

Chunks chunks_of(const UpdateCall& call) {
  const int64_t n = call.channels * call.pixels;
  const int64_t least = (n + kMaxChunks - 1) / kMaxChunks, blocks = (least + kBlock - 1) / kBlock;
  const int64_t size = larger(kGrain, blocks * kBlock);
  return {n, size, (n + size - 1) / size};
}

// Sum of |g|, of g², or the largest |g| of elements start … start + n - 1 of the gradient.
template <class C>
double reduced(const UpdateCall& call, int64_t start, int64_t n) {
  C buffer[kBlock];
  double total = 0.0;
  for (const int64_t end = start + n; start < end; start += kBlock) {
    const int64_t size = smaller(kBlock, end - start);
    const C* g = loaded(call.grad, call.grad_type, start, size, buffer);
    fetch(call.grad, call.grad_type, start + 4 * kBlock, size);
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
  return total;
}

// 1 / N of equation 5 for one image.
template <class C>
double inverse_norm_of(const UpdateCall& call, int64_t b, int team) {
  const Chunks chunks = chunks_of(call);
  if (call.normalize == Normalize::none || chunks.values == 0) return 1.0;
  double part[kMaxChunks], total = 0.0;
  parallel_for(team, chunks.count, [&](int64_t k) {
    part[k] = reduced<C>(call, b * chunks.values + chunks.at(k), chunks.length(k));
  });
  const bool most = call.normalize == Normalize::max_abs;
  for (int64_t k = 0; k < chunks.count; ++k) total = most ? larger(total, part[k]) : total + part[k];
  return inverse_norm(call.normalize, total, chunks.values);
}

// Elements start … start + n - 1 of `values`, each repeated `channels` times. Three channels have a
// loop of their own: it vectorises.
template <class C>
void repeat(const C* values, int64_t channels, int64_t start, int64_t n, C* to) {
  const C *const end = to + n, *value = values + start / channels;
  for (int64_t c = start % channels; c % channels && to < end; ++c) *to++ = *value;
  if (start % channels) ++value;
  const int64_t whole = (end - to) / channels;
  if (channels == 3) {
    for (int64_t p = 0; p < whole; ++p) to[3 * p] = to[3 * p + 1] = to[3 * p + 2] = value[p];
  } else {
    for (int64_t p = 0; p < whole; ++p)
      for (int64_t c = 0; c < channels; ++c) to[p * channels + c] = value[p];
  }
  for (to += whole * channels; to < end; ++to) *to = value[whole];
}

// The domain of elements start … start + n - 1 of an image, in the order of its elements.
template <class C>
const C* domain_of(const UpdateCall& call, int64_t b, int64_t start, int64_t n, C* buffer) {
  const C* domain = static_cast<const C*>(call.domain) + b * call.pixels;
  if (!call.domain) {
    for (int64_t i = 0; i < n; ++i) buffer[i] = C(1);
  } else if (call.channels_last) {
    repeat(domain, call.channels, start, n, buffer);
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

template <bool Sign, class C, class G>
void step_block(const Block<C, G>& k, const UpdateSettings<C>& s) {
  C v[kBlock];
  if (k.momentum)
    for (int64_t i = 0; i < k.size; ++i) v[i] = velocity(C(load(k.grad + i)), k.momentum[i], s);
  else
    for (int64_t i = 0; i < k.size; ++i) v[i] = started(C(load(k.grad + i)), s);
  if (k.momentum_out) memcpy(k.momentum_out, v, size_t(k.size) * sizeof(C));
#pragma omp simd
  for (int64_t i = 0; i < k.size; ++i)
    k.out[i] = stepped(k.adv[i], k.images[i], k.domain[i], direction<Sign>(v[i], s), s);
}

// Elements start … start + n - 1 of image b.
template <bool Sign, class C, class G>
void step(const UpdateCall& call, int64_t b, int64_t start, int64_t n, const UpdateSettings<C>& s) {
  const int64_t values = call.channels * call.pixels, end = start + n;
  const C* momentum = static_cast<const C*>(call.momentum);
  C* momentum_out = static_cast<C*>(call.momentum_out);
  const G* grad = static_cast<const G*>(call.grad);
  const G* next_grad = values <= kAhead && b + 1 < call.batch ? grad + values : nullptr;
  C a_buffer[kBlock], x_buffer[kBlock], m_buffer[kBlock], o[kBlock];
  for (; start < end; start += kBlock) {
    const int64_t size = smaller(kBlock, end - start);
    const int64_t at = b * values + start;
    const Block<C, G> block{loaded(call.adv, call.image_type, at, size, a_buffer),
                            loaded(call.images, call.image_type, at, size, x_buffer),
                            domain_of(call, b, start, size, m_buffer),
                            grad + at,
                            momentum ? momentum + at : nullptr,
                            momentum_out ? momentum_out + at : nullptr,
                            target(call.adv_out, call.image_type, at, o),
                            size,
                            next_grad ? next_grad + at : nullptr};
    step_block<Sign>(block, s);
    if (block.out == o) stored(o, call.adv_out, call.image_type, at, size);
  }
}

template <bool Sign, class C>
auto step_for(DType grad) {
  switch (grad) {
    case DType::float64: return step<Sign, C, double>;
    case DType::float16: return step<Sign, C, Half>;
    case DType::bfloat16: return step<Sign, C, BFloat16>;
    default: return step<Sign, C, float>;
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
void update_image(const UpdateCall& call, int64_t b, int team) {
  if (call.active && !call.active[b]) return keep_image<C>(call, b);
  const Chunks chunks = chunks_of(call);
  const auto s = settings_of<C>(call, b, inverse_norm_of<C>(call, b, team));
  const auto step = __builtin_isinf(call.gain) ? step_for<true, C>(call.grad_type)
                                               : step_for<false, C>(call.grad_type);
  parallel_for(team, chunks.count,
               [&](int64_t k) { step(call, b, chunks.at(k), chunks.length(k), s); });
}

template <class C>
void update_batch(const UpdateCall& call, int threads) {
  const Chunks chunks = chunks_of(call);
  const int over_images = workers(threads, call.batch, call.batch * chunks.values);
  const int within = workers(threads, chunks.count, chunks.values);
  if (within > over_images) {
    for (int64_t b = 0; b < call.batch; ++b) update_image<C>(call, b, within);
    return;
  }
  parallel_for(over_images, call.batch, [&](int64_t b) { update_image<C>(call, b, 1); });
}

void update(const UpdateCall& call, int threads) {
  if (call.image_type == DType::float64) return update_batch<double>(call, threads);
  update_batch<float>(call, threads);
}
