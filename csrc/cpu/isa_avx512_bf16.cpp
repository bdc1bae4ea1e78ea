// Winograd's products in bfloat16, by the AVX-512 instruction that sums those of two channels.
#include "isa.h"
#ifdef SDSGSM_BF16
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,prefer-vector-width=512")
#include "kernels.h"

namespace sdsgsm::cpu {
namespace {
#include "blocks.inl"
constexpr int kLanes = 16, kRows = 6, kVecs = 4;
#include "vectors.inl"
#include "pixels.inl"
constexpr int kTiles = 24;  // half of 48 is faster with 1 MiB of L2, as AMD has
#include "winograd.inl"

struct Brief {
  typedef BFloat16 Value;
  static constexpr int kPair = 2;

  SDSGSM_HD Vec read(const BFloat16* at) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return Vec(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)));
  }
  SDSGSM_HD void write(BFloat16* at, Vec value) {
    const __m256i half = __m256i(_mm512_cvtneps_pbh(__m512(value)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), half);
  }
  SDSGSM_HD __m512bh weights(const BFloat16* at) { return __m512bh(_mm512_loadu_si512(at)); }
  SDSGSM_HD __m512bh input(const BFloat16* at) {
    int32_t pair;
    memcpy(&pair, at, sizeof pair);
    return __m512bh(_mm512_set1_epi32(pair));
  }
  SDSGSM_HD Vec added(Vec sum, __m512bh x, __m512bh w) {
    return Vec(_mm512_dpbf16_ps(__m512(sum), x, w));
  }
};

}  // namespace

extern const WinogradKernels avx512_bf16{winograd<Brief>, winograd_pack<Brief>};
}  // namespace sdsgsm::cpu
#endif
