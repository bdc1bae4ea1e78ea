// What every source shares: the function qualifiers and the element types.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define SDSGSM_HD __host__ __device__ __forceinline__
#else
#define SDSGSM_HD static inline __attribute__((always_inline))
#endif

namespace sdsgsm {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The numbers by which Python names the element types.
enum class DType : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

SDSGSM_HD int64_t size_of(DType type) {
  return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2;
}

SDSGSM_HD uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

SDSGSM_HD float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

SDSGSM_HD float load(const float* at) { return *at; }
SDSGSM_HD double load(const double* at) { return *at; }
SDSGSM_HD float load(const BFloat16* at) { return float_of(uint32_t(at->bits) << 16); }

// Branch-free so that it vectorises. Exponents are rebased on the integer; a subnormal half gets that
// of 2⁻¹⁴, which is subtracted again, so that no subnormal float comes up, which a processor may be
// told to take for zero. Infinities and NaNs get the largest exponent.
SDSGSM_HD float load(const Half* at) {
  const uint32_t magnitude = uint32_t(at->bits & 0x7fff) << 13;
  const uint32_t subnormal = bits_of(float_of(magnitude | 0x38800000u) - 0x1p-14f);
  const uint32_t normal = magnitude + (112u << 23), special = magnitude | 0x7f800000u;
  const uint32_t finite = magnitude < 0x00800000u ? subnormal : normal;
  return float_of((magnitude < 0x0f800000u ? finite : special) | uint32_t(at->bits & 0x8000) << 16);
}

SDSGSM_HD void store(float* at, float value) { *at = value; }
SDSGSM_HD void store(double* at, double value) { *at = value; }

// Round to nearest even, as torch does; a NaN stays one.
SDSGSM_HD void store(BFloat16* at, float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  at->bits = uint16_t(value == value ? rounded : 0x7fc0u);
}

// Normal halves round on the integer, subnormal ones by the addition that aligns their last bit.
SDSGSM_HD void store(Half* at, float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  at->bits = uint16_t(sign | (magnitude >= 0x477ff000u ? special : finite));
}

}  // namespace sdsgsm
