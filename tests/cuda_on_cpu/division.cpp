// Whether the CUDA kernels' division by a launch's constant is that of the processor: for divisors of
// every size, at multiples and one below, and at the largest number.
#include <cuda_runtime.h>

#include "../../csrc/cuda/divide.cuh"

int main() {
  const uint32_t most = 0x7fffffffu;
  uint64_t state = 1;
  for (int trial = 0; trial < 200000; ++trial) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const uint32_t drawn = uint32_t(state >> 33) >> (trial % 31);
    const uint32_t divisor = trial < 5000 ? uint32_t(trial + 1) : trial < 10000 ? most - trial + 5000 : drawn | 1;
    for (const uint32_t d : {divisor, divisor & (0u - divisor), divisor / 2 + 1}) {
      const sdsgsm::cuda::Divider by(d);
      const uint32_t multiple = uint32_t(state >> 20) % (most / d + 1) * d;
      for (const uint32_t n : {0u, d - 1, d, multiple, multiple - (multiple > 0), most / d * d, most - 1, most})
        if (by.quotient(n) != n / d || by.remainder(n) != n % d) return printf("%u / %u\n", n, d), 1;
    }
  }
}
