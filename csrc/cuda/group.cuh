// Eight consecutive values as a thread reads and writes them: in accesses of 16 bytes.
#pragma once
#include "../common.h"

namespace sdsgsm::cuda {

constexpr int kGroup = 8;

template <class C>
struct Group {
  C values[kGroup];
  __device__ C& operator[](int i) { return values[i]; }
  __device__ C operator[](int i) const { return values[i]; }
};

// `at` lies at a multiple of 16 bytes.
template <class C, class T>
__device__ __forceinline__ Group<C> load_group(const T* at) {
  constexpr int kWords = kGroup * sizeof(T) / sizeof(uint4);
  uint4 words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const uint4*>(at)[i];
  T held[kGroup];
  memcpy(held, words, sizeof held);
  Group<C> group;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) group[i] = C(load(held + i));
  return group;
}

template <class C, class T>
__device__ __forceinline__ void store_group(T* at, const Group<C>& group) {
  constexpr int kWords = kGroup * sizeof(T) / sizeof(uint4);
  T held[kGroup];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) store(held + i, group[i]);
  uint4 words[kWords];
  memcpy(words, held, sizeof held);
#pragma unroll
  for (int i = 0; i < kWords; ++i) reinterpret_cast<uint4*>(at)[i] = words[i];
}

// An image of n values may start anywhere. It is covered by its aligned groups and, apart from
// them, by its at most 2 · (kGroup − 1) edge values before the first and after the last group.
struct Extent {
  int64_t start, end, first, groups;  // places in the batch; whole groups from `first` on

  __device__ Extent(int64_t b, int64_t n) {
    start = b * n;
    end = start + n;
    first = (start + kGroup - 1) / kGroup * kGroup;
    groups = end / kGroup > first / kGroup ? end / kGroup - first / kGroup : 0;
  }
  // Edge value i of 2 · kGroup, or −1 where there is none.
  __device__ int64_t edge(int i) const {
    const int64_t place = i < kGroup ? start + i : first + groups * kGroup + i - kGroup;
    const int64_t limit = i < kGroup && first < end ? first : end;
    return i < 2 * kGroup && place < limit ? place : -1;
  }
};

}  // namespace sdsgsm::cuda
