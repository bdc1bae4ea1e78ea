// Sixteen floats in one register as a number type: the formulas of update.h take it like a float.

#include "tanh_table.inl"

inline __m512 looked_up(const float* table, __m512i index) {
  return _mm512_permutex2var_ps(_mm512_load_ps(table), index, _mm512_load_ps(table + 16));
}

// tanh by a table: its 32 entries fill two registers, so a lookup is one permutation, which heeds
// the lowest 5 bits of the index. Within 1.01 ulp (bench/tanh.py).
inline __m512 tanh16(__m512 x) {
  const __m512i first = _mm512_set1_epi32(0x3d800000);  // 2⁻⁴; interval 0 takes what is below, too
  const __m512i last = _mm512_set1_epi32(0x417fffff);   // just below 2⁴: tanh is 1
  const __m512i sign = _mm512_set1_epi32(int(0x80000000)), bits = _mm512_castps_si512(x);
  const __m512i magnitude = _mm512_min_epu32(_mm512_andnot_si512(sign, bits), last);
  const __m512i index = _mm512_srli_epi32(_mm512_max_epu32(magnitude, first), 21);
  const __m512 t = _mm512_sub_ps(_mm512_castsi512_ps(magnitude), looked_up(kCentre, index));
  __m512 p = looked_up(kCoefficient5, index);
  p = _mm512_fmadd_ps(p, t, looked_up(kCoefficient4, index));
  p = _mm512_fmadd_ps(p, t, looked_up(kCoefficient3, index));
  p = _mm512_fmadd_ps(p, t, looked_up(kCoefficient2, index));
  p = _mm512_fmadd_ps(p, t, looked_up(kCoefficient1, index));
  p = _mm512_fmadd_ps(p, t, looked_up(kCoefficient0, index));
  // The sign bit of x, the other bits of p.
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(sign, bits, _mm512_castps_si512(p), 0xca));
}

inline __m512 sign16(__m512 v) {
  const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
  const __mmask16 above = _mm512_cmp_ps_mask(v, zero, _CMP_GT_OQ);
  const __mmask16 below = _mm512_cmp_ps_mask(v, zero, _CMP_LT_OQ);
  return _mm512_mask_sub_ps(_mm512_maskz_mov_ps(above, one), below, zero, one);
}

// In a namespace of their own these join the scalar functions of the same names; else they hid them.
namespace lanes {

struct Lanes {
  __m512 value;
  Lanes(__m512 v) : value(v) {}
  explicit Lanes(float v) : value(_mm512_set1_ps(v)) {}
};

inline Lanes operator+(Lanes a, Lanes b) { return _mm512_add_ps(a.value, b.value); }
inline Lanes operator-(Lanes a, Lanes b) { return _mm512_sub_ps(a.value, b.value); }
inline Lanes operator*(Lanes a, Lanes b) { return _mm512_mul_ps(a.value, b.value); }
inline Lanes larger(Lanes a, Lanes b) { return _mm512_max_ps(a.value, b.value); }
inline Lanes smaller(Lanes a, Lanes b) { return _mm512_min_ps(a.value, b.value); }
inline Lanes sign_of(Lanes v) { return sign16(v.value); }
inline Lanes smooth(Lanes v) { return tanh16(v.value); }

}  // namespace lanes
using lanes::Lanes;

// Sixteen elements as floats, those of `mask`.
inline Lanes lanes_of(const float* from, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, from);
}
inline Lanes lanes_of(const double* from, __mmask16 mask) {
  const __m256 low = _mm512_cvtpd_ps(_mm512_maskz_loadu_pd(__mmask8(mask), from));
  const __m256 high = _mm512_cvtpd_ps(_mm512_maskz_loadu_pd(__mmask8(mask >> 8), from + 8));
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
inline Lanes lanes_of(const Half* from, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
}
inline Lanes lanes_of(const BFloat16* from, __mmask16 mask) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Sixteen elements from i on, those of `mask`.
template <bool Sign, class G>
inline void step_lanes(const Block<float, G>& k, int64_t i, __mmask16 mask,
                       const UpdateSettings<Lanes>& s) {
  const Lanes grad = lanes_of(k.grad + i, mask);
  const Lanes v = k.momentum ? velocity(grad, lanes_of(k.momentum + i, mask), s) : started(grad, s);
  if (k.momentum_out) _mm512_mask_storeu_ps(k.momentum_out + i, mask, v.value);
  const Lanes new_adv = stepped(lanes_of(k.adv + i, mask), lanes_of(k.images + i, mask),
                                lanes_of(k.domain + i, mask), direction<Sign>(v, s), s);
  _mm512_mask_storeu_ps(k.out + i, mask, new_adv.value);
}

// Ask for the line of element i of a later block.
template <class T>
inline void fetch_later(const T* array, int64_t i) {
  _mm_prefetch(reinterpret_cast<const char*>(array + i + kBlock), _MM_HINT_T0);
}

// Overload of the template in update.inl: one loop, which asks for what a later block reads, so that
// arithmetic and loads overlap. Asking for all four arrays is worth 4 to 10 % on Zen 5.
template <bool Sign, class G>
void step_block(const Block<float, G>& k, const UpdateSettings<float>& one) {
  const UpdateSettings<Lanes> s{Lanes(one.eps), Lanes(one.alpha), Lanes(one.background),
                                Lanes(one.inverse_norm), Lanes(one.decay), Lanes(one.gain),
                                Lanes(one.lo), Lanes(one.hi)};
  int64_t i = 0;
  for (; i + 16 <= k.size; i += 16) {
    fetch_later(k.adv, i);
    fetch_later(k.images, i);
    fetch_later(k.grad, i);
    fetch_later(k.domain, i);
    if (k.next_grad) _mm_prefetch(reinterpret_cast<const char*>(k.next_grad + i), _MM_HINT_T1);
    step_lanes<Sign>(k, i, 0xffff, s);
  }
  if (i < k.size) step_lanes<Sign>(k, i, __mmask16((1u << (k.size - i)) - 1), s);
}
