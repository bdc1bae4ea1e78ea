// Eight floats in one register as a number type: the formulas of update.h take it like a float.

inline __m256 set8(float v) { return _mm256_set1_ps(v); }
inline __m256i bits8(__m256 v) { return _mm256_castps_si256(v); }

// The tanh of update.h, with a division in place of Newton's steps: AVX2 has no permutation that
// looks thirty-two values up. Within 1.34 ulp (bench/tanh.py).
inline __m256 tanh8(__m256 x) {
  const __m256 sign = set8(-0.0f), magnitude = _mm256_andnot_ps(sign, x), one = set8(1.0f);
  // exp(y) = 2^n · exp(r): adding 1.5 · 2²³ leaves n in the lowest bits of t.
  const __m256 y = _mm256_min_ps(_mm256_add_ps(magnitude, magnitude), set8(20.0f)), round = set8(12582912.0f);
  const __m256 t = _mm256_fmadd_ps(y, set8(1.44269504088896341f), round), n = _mm256_sub_ps(t, round);
  __m256 r = _mm256_fnmadd_ps(n, set8(0.693359375f), y);
  r = _mm256_fmadd_ps(n, set8(2.12194440e-4f), r);
  __m256 e = set8(1.9875691500e-4f);
  e = _mm256_fmadd_ps(e, r, set8(1.3981999507e-3f));
  e = _mm256_fmadd_ps(e, r, set8(8.3334519073e-3f));
  e = _mm256_fmadd_ps(e, r, set8(4.1665795894e-2f));
  e = _mm256_fmadd_ps(e, r, set8(1.6666665459e-1f));
  e = _mm256_fmadd_ps(e, r, set8(5.0000001201e-1f));
  e = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(e, r), r, r), one);
  e = _mm256_castsi256_ps(_mm256_add_epi32(bits8(e), _mm256_slli_epi32(bits8(t), 23)));
  const __m256 far = _mm256_sub_ps(one, _mm256_div_ps(set8(2.0f), _mm256_add_ps(e, one)));
  const __m256 square = _mm256_mul_ps(magnitude, magnitude);
  __m256 p = set8(-5.70498872745e-3f);
  p = _mm256_fmadd_ps(p, square, set8(2.06390887954e-2f));
  p = _mm256_fmadd_ps(p, square, set8(-5.37397155531e-2f));
  p = _mm256_fmadd_ps(p, square, set8(1.33314422036e-1f));
  p = _mm256_fmadd_ps(p, square, set8(-3.33332819422e-1f));
  const __m256 near = _mm256_fmadd_ps(_mm256_mul_ps(p, square), magnitude, magnitude);
  const __m256 small = _mm256_cmp_ps(magnitude, set8(0.625f), _CMP_LT_OQ);
  return _mm256_or_ps(_mm256_blendv_ps(far, near, small), _mm256_and_ps(sign, x));
}

inline __m256 sign8(__m256 v) {
  const __m256 zero = _mm256_setzero_ps(), one = set8(1.0f);
  const __m256 above = _mm256_and_ps(_mm256_cmp_ps(v, zero, _CMP_GT_OQ), one);
  const __m256 below = _mm256_and_ps(_mm256_cmp_ps(v, zero, _CMP_LT_OQ), one);
  return _mm256_sub_ps(above, below);
}

// In a namespace of their own these join the scalar functions of the same names; else they hid them.
namespace lanes {

struct Lanes {
  __m256 value;
  Lanes(__m256 v) : value(v) {}
  explicit Lanes(float v) : value(set8(v)) {}
};

inline Lanes operator+(Lanes a, Lanes b) { return _mm256_add_ps(a.value, b.value); }
inline Lanes operator-(Lanes a, Lanes b) { return _mm256_sub_ps(a.value, b.value); }
inline Lanes operator*(Lanes a, Lanes b) { return _mm256_mul_ps(a.value, b.value); }
inline Lanes larger(Lanes a, Lanes b) { return _mm256_max_ps(a.value, b.value); }
inline Lanes smaller(Lanes a, Lanes b) { return _mm256_min_ps(a.value, b.value); }
inline Lanes sign_of(Lanes v) { return sign8(v.value); }
inline Lanes smooth(Lanes v) { return tanh8(v.value); }

}  // namespace lanes
using lanes::Lanes;

// Eight elements as floats.
inline Lanes lanes_of(const float* from) { return _mm256_loadu_ps(from); }
inline Lanes lanes_of(const double* from) {
  return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(from + 4)), _mm256_cvtpd_ps(_mm256_loadu_pd(from)));
}
inline __m128i eight_halves(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline Lanes lanes_of(const Half* from) { return _mm256_cvtph_ps(eight_halves(from)); }
inline Lanes lanes_of(const BFloat16* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight_halves(from)), 16));
}

// Eight elements from i on.
template <bool Sign, class G>
inline void step_lanes(const Block<float, G>& k, int64_t i, const UpdateSettings<Lanes>& s) {
  const Lanes grad = lanes_of(k.grad + i);
  const Lanes v = k.momentum ? velocity(grad, lanes_of(k.momentum + i), s) : started(grad, s);
  if (k.momentum_out) _mm256_storeu_ps(k.momentum_out + i, v.value);
  const Lanes new_adv = stepped(lanes_of(k.adv + i), lanes_of(k.images + i), lanes_of(k.domain + i),
                                direction<Sign>(v, s), s);
  _mm256_storeu_ps(k.out + i, new_adv.value);
}

// The last elements, fewer than eight, by way of whole vectors.
template <bool Sign, class G>
void step_tail(const Block<float, G>& k, int64_t i, const UpdateSettings<Lanes>& s) {
  const size_t n = size_t(k.size - i), bytes = n * sizeof(float);
  float adv[8] = {}, images[8] = {}, domain[8] = {}, momentum[8] = {}, kept[8], out[8];
  G grad[8] = {};
  memcpy(adv, k.adv + i, bytes), memcpy(images, k.images + i, bytes), memcpy(domain, k.domain + i, bytes);
  memcpy(grad, k.grad + i, n * sizeof(G));
  if (k.momentum) memcpy(momentum, k.momentum + i, bytes);
  const Block<float, G> tail{adv, images, domain, grad, k.momentum ? momentum : nullptr, kept, out, 8, nullptr};
  step_lanes<Sign>(tail, 0, s);
  memcpy(k.out + i, out, bytes);
  if (k.momentum_out) memcpy(k.momentum_out + i, kept, bytes);
}

// Ask for the line of element i of a later block.
template <class T>
inline void fetch_later(const T* array, int64_t i) {
  _mm_prefetch(reinterpret_cast<const char*>(array + i + kBlock), _MM_HINT_T0);
}

// Overload of the template in update.inl: one loop, which asks for what a later block reads, so that
// arithmetic and loads overlap.
template <bool Sign, class G>
void step_block(const Block<float, G>& k, const UpdateSettings<float>& one) {
  const UpdateSettings<Lanes> s{Lanes(one.eps), Lanes(one.alpha), Lanes(one.background),
                                Lanes(one.inverse_norm), Lanes(one.decay), Lanes(one.gain),
                                Lanes(one.lo), Lanes(one.hi)};
  int64_t i = 0;
  for (; i + 16 <= k.size; i += 16) {  // a line of floats
    fetch_later(k.adv, i);
    fetch_later(k.images, i);
    fetch_later(k.grad, i);
    fetch_later(k.domain, i);
    if (k.next_grad) _mm_prefetch(reinterpret_cast<const char*>(k.next_grad + i), _MM_HINT_T1);
    step_lanes<Sign>(k, i, s);
    step_lanes<Sign>(k, i + 8, s);
  }
  for (; i + 8 <= k.size; i += 8) step_lanes<Sign>(k, i, s);
  if (i < k.size) step_tail<Sign>(k, i, s);
}
