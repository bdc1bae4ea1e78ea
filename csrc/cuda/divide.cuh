// Division by a number that a whole launch shares: a product and two shifts.
#pragma once
#include "../common.h"

namespace sdsgsm::cuda {

// n / d for n < 2³¹ and 1 <= d < 2³¹. With 2^(l−1) < d <= 2^l the factor ⌈2^(31+l) / d⌉ has 32 bits and
// exceeds the true one by less than 2^l / d, so that the quotient is off by less than 1 / d.
struct Divider {
  uint32_t divisor, factor, shift;

  explicit Divider(int64_t by) : divisor(uint32_t(by)), shift(0) {
    while ((uint64_t(1) << shift) < divisor) ++shift;
    factor = uint32_t(((uint64_t(1) << (31 + shift)) + divisor - 1) / divisor);
  }
  __device__ uint32_t quotient(uint32_t n) const {
    return uint32_t(uint64_t(2 * n) * factor >> 32) >> shift;
  }
  __device__ uint32_t remainder(uint32_t n) const { return n - quotient(n) * divisor; }
};

}  // namespace sdsgsm::cuda
