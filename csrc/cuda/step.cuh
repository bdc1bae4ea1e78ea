// The step of equations 3, 6 and 7 over groups and edge values of an image.
#pragma once
#include "../calls.h"
#include "divide.cuh"
#include "group.cuh"
#include "tanh.cuh"

namespace sdsgsm::cuda {

// A call, and what follows from it for all images.
struct Job {
  UpdateCall call;
  Divider plane;      // by the channels if channels_last, else by the pixels
  Divider parts;      // blocks of an image
  uint32_t each;      // groups of such a block
  uint32_t size;      // values of an image
  bool aligned_rows;  // every group lies in one channel, and its domain at a multiple of 16 bytes

  Job(const UpdateCall& c, int64_t blocks)
      : call(c),
        plane(c.channels_last ? c.channels : c.pixels),
        parts(blocks),
        each(uint32_t((groups_of(c.channels * c.pixels) + blocks - 1) / blocks)),
        size(uint32_t(c.channels * c.pixels)),
        aligned_rows(!c.channels_last && c.pixels % kGroup == 0) {}
};

// An image's arrays; null where there is none.
template <class C, class I>
struct Image {
  const I *adv, *image;
  const C *domain, *momentum;
  I* adv_out;
  C* momentum_out;

  __device__ Image(const UpdateCall& call, int64_t b, int64_t start)
      : adv(static_cast<const I*>(call.adv) + start),
        image(static_cast<const I*>(call.images) + start),
        domain(call.domain ? static_cast<const C*>(call.domain) + b * call.pixels : nullptr),
        momentum(call.momentum ? static_cast<const C*>(call.momentum) + start : nullptr),
        adv_out(static_cast<I*>(call.adv_out) + start),
        momentum_out(call.momentum_out ? static_cast<C*>(call.momentum_out) + start : nullptr) {}
};

template <class C>
__device__ __forceinline__ C domain_at(const Job& job, const C* domain, uint32_t place) {
  if (!domain) return C(1);
  return domain[job.call.channels_last ? job.plane.quotient(place) : job.plane.remainder(place)];
}

// The domain of a group: one division for all of it.
template <class C>
__device__ __forceinline__ Packed<C> domain_group(const Job& job, const C* domain, uint32_t place) {
  Group<C> m;
  if (!domain) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) m[i] = C(1);
    return packed_from<C>(m);
  }
  if (job.aligned_rows) return load_packed(domain + job.plane.remainder(place));
  const uint32_t quotient = job.plane.quotient(place);
  uint32_t rest = place - quotient * job.plane.divisor;
  uint32_t pixel = job.call.channels_last ? quotient : rest;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    m[i] = domain[pixel];
    const bool wraps = ++rest == job.plane.divisor;
    if (wraps) rest = 0;
    pixel = job.call.channels_last ? pixel + wraps : rest;
  }
  return packed_from<C>(m);
}

// What a group's step reads besides the gradient.
template <class C, class I>
struct Inputs {
  Packed<I> adv, image;
  Packed<C> domain;

  __device__ __forceinline__ void read(const Job& job, const Image<C, I>& at, uint32_t place) {
    adv = load_packed(at.adv + place);
    image = load_packed(at.image + place);
    domain = domain_group(job, at.domain, place);
  }
};

template <class C>
__device__ __forceinline__ C stepped_fast(C adv, C image, C m, C direction,
                                          const UpdateSettings<C>& s) {
  const Moved<C> moved = moved_by(adv, m, direction, s);
  return clipped(moved.value, image, moved.budget, s.lo, s.hi);
}

template <class C>
__device__ __forceinline__ Group<C> directions(const Group<C>& v, const UpdateSettings<C>& s) {
  Group<C> d;
  if (isinf(s.gain)) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) d[i] = sign_of(v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) d[i] = smooth_fast(s.gain * v[i]);
  }
  return d;
}

template <class C, class I>
__device__ __forceinline__ void step_group(const Image<C, I>& at, const UpdateSettings<C>& s,
                                           uint32_t place, const Inputs<C, I>& inputs,
                                           const Group<C>& grad) {
  Group<C> v, out;
  if (at.momentum) {
    const Group<C> old = unpacked<C, C>(load_packed(at.momentum + place));
#pragma unroll
    for (int i = 0; i < kGroup; ++i) v[i] = velocity(grad[i], old[i], s);
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) v[i] = started(grad[i], s);
  }
  if (at.momentum_out) store_packed(at.momentum_out + place, packed_from<C>(v));
  const Group<C> d = directions(v, s), m = unpacked<C, C>(inputs.domain);
  const Group<C> adv = unpacked<C, I>(inputs.adv), image = unpacked<C, I>(inputs.image);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) out[i] = stepped_fast(adv[i], image[i], m[i], d[i], s);
  store_packed(at.adv_out + place, packed_from<I>(out));
}

// One edge value.
template <class C, class I>
__device__ void step_value(const Job& job, const Image<C, I>& at, const UpdateSettings<C>& s,
                           uint32_t place, C grad) {
  const C v = at.momentum ? velocity(grad, at.momentum[place], s) : started(grad, s);
  if (at.momentum_out) at.momentum_out[place] = v;
  const C adv = C(load(at.adv + place)), image = C(load(at.image + place));
  const C d = isinf(s.gain) ? sign_of(v) : smooth_fast(s.gain * v);
  store(at.adv_out + place, stepped_fast(adv, image, domain_at(job, at.domain, place), d, s));
}

// An inactive image keeps its pixels and its momentum. `from` of `every` threads do it.
template <class C, class I>
__device__ void keep(const Image<C, I>& at, uint32_t size, uint32_t from, uint32_t every) {
  for (uint32_t i = from; i < size; i += every) {
    if (at.adv_out != at.adv) at.adv_out[i] = at.adv[i];
    if (at.momentum_out && at.momentum_out != at.momentum)
      at.momentum_out[i] = at.momentum ? at.momentum[i] : C(0);
  }
}

}  // namespace sdsgsm::cuda
