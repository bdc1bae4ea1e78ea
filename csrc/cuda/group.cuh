// Four consecutive values as a thread reads and writes them. Consecutive threads take consecutive
// groups, so that every access of a warp fills whole sectors: 16 bytes a thread of float32, 8 of the
// 16-bit types, twice 16 of float64.
#pragma once
#include <type_traits>

#include "../update.h"

namespace sdsgsm::cuda {

constexpr int kGroup = 4;

// At most; of an image that does not begin at a group there may be fewer whole ones.
inline int64_t groups_of(int64_t values) { return (values + kGroup - 1) / kGroup; }

template <class C>
struct Group {
  C values[kGroup];
  __device__ C& operator[](int i) { return values[i]; }
  __device__ C operator[](int i) const { return values[i]; }
};

// A group as it lies in memory: loaded early, converted when it is needed.
template <class T>
struct Packed {
  using Word = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
  static constexpr int kWords = kGroup * sizeof(T) / sizeof(Word);
  Word words[kWords];
};

// `at` lies at a multiple of a word.
template <class T>
__device__ __forceinline__ Packed<T> load_packed(const T* at) {
  Packed<T> packed;
#pragma unroll
  for (int i = 0; i < Packed<T>::kWords; ++i)
    packed.words[i] = reinterpret_cast<const typename Packed<T>::Word*>(at)[i];
  return packed;
}

template <class T>
__device__ __forceinline__ void store_packed(T* at, const Packed<T>& packed) {
#pragma unroll
  for (int i = 0; i < Packed<T>::kWords; ++i)
    reinterpret_cast<typename Packed<T>::Word*>(at)[i] = packed.words[i];
}

template <class C, class T>
__device__ __forceinline__ Group<C> unpacked(const Packed<T>& packed) {
  T held[kGroup];
  memcpy(held, &packed, sizeof held);
  Group<C> group;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) group[i] = C(load(held + i));
  return group;
}

template <class T, class C>
__device__ __forceinline__ Packed<T> packed_from(const Group<C>& group) {
  T held[kGroup];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) store(held + i, group[i]);
  Packed<T> packed;
  memcpy(&packed, held, sizeof held);
  return packed;
}

// An image of n values may start anywhere. It is covered by its aligned groups and, apart from
// them, by its at most 2 · (kGroup − 1) edge values before the first and after the last group.
// Places are counted from the image's start.
struct Extent {
  int64_t start;  // in the batch
  uint32_t size, first, groups;

  __device__ Extent(int64_t b, uint32_t n) : start(b * n), size(n) {
    first = uint32_t(-start) % kGroup;
    groups = n > first ? (n - first) / kGroup : 0;
  }
  // Where a group begins.
  __device__ uint32_t place(uint32_t group) const { return first + group * kGroup; }
  // Edge value i of 2 · kGroup, or the image's size where there is none.
  __device__ uint32_t edge(uint32_t i) const {
    if (i < kGroup) return i < first && i < size ? i : size;
    const uint32_t at = first + groups * kGroup + (i - kGroup);
    return i < 2 * kGroup && at < size ? at : size;
  }
};

// The groups [from, to) of an image's part `index`: `each` but for the last ones.
struct Part {
  uint32_t from, to;

  __device__ Part(const Extent& e, uint32_t index, uint32_t each)
      : from(smaller(index * each, e.groups)), to(smaller(from + each, e.groups)) {}
};

}  // namespace sdsgsm::cuda
