// Eight floats in one register as a number type: the formulas of update.h take it like a float.

inline __m256 set8(float v) { return _mm256_set1_ps(v); }
inline __m256i bits8(__m256 v) { return _mm256_castps_si256(v); }

// tanh by E / (E + 2), where E = exp(2|x|) - 1 has no cancellation: with |x| = n·ln(2)/2 + r it is
// 2ⁿ·q + (2ⁿ - 1), where q = exp(2r) - 1 is a polynomial. All is scaled by 3/4: then E + 2 lies below a
// power of two where x is small, which rounds it finer. Within 1.92 ulp (bench/tanh.py).
inline __m256 tanh8(__m256 x) {
  const __m256 sign = set8(-0.0f), magnitude = _mm256_min_ps(_mm256_andnot_ps(sign, x), set8(10.0f));
  // The addend leaves 127 + n in the lowest bits, where the exponent's are of 2ⁿ.
  const __m256 addend = set8(12582912.0f + 127.0f);
  const __m256 t = _mm256_fmadd_ps(magnitude, set8(2.8853900817779268f), addend), n = _mm256_sub_ps(t, addend);
  const __m256 power = _mm256_castsi256_ps(_mm256_slli_epi32(bits8(t), 23));
  const __m256 r = _mm256_fnmadd_ps(n, set8(0.34657359027997264f), magnitude);
  __m256 p = set8(6.66354969e-2f);
  p = _mm256_fmadd_ps(p, r, set8(0.200812474f));
  p = _mm256_fmadd_ps(p, r, set8(0.500006676f));
  p = _mm256_fmadd_ps(p, r, set8(0.999992311f));
  p = _mm256_fmadd_ps(p, r, set8(1.5f));
  const __m256 q = _mm256_fmadd_ps(r, set8(1.5f), _mm256_mul_ps(_mm256_mul_ps(r, r), p));
  const __m256 e = _mm256_fmadd_ps(power, q, _mm256_fmsub_ps(power, set8(0.75f), set8(0.75f)));
  const __m256 y = _mm256_div_ps(e, _mm256_add_ps(e, set8(1.5f)));
  return _mm256_or_ps(y, _mm256_and_ps(sign, x));
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
