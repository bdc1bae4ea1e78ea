// The step of equations 3, 6 and 7 over groups and edge values of an image.
#pragma once
#include "../calls.h"
#include "group.cuh"

namespace sdsgsm::cuda {

// The domain's value at place `inside` image b. An image has less than 2³¹ values: dividing 32-bit
// numbers takes a third of the instructions.
template <class C>
__device__ C domain_at(const UpdateCall& call, int64_t b, uint32_t inside) {
  if (!call.domain) return C(1);
  const uint32_t channels = uint32_t(call.channels), pixels = uint32_t(call.pixels);
  const uint32_t pixel = call.channels_last ? inside / channels : inside % pixels;
  return static_cast<const C*>(call.domain)[b * call.pixels + pixel];
}

// Those of a group: of one row of pixels in two accesses where that is aligned.
template <class C>
__device__ Group<C> domain_group(const UpdateCall& call, int64_t b, uint32_t inside) {
  const C* domain = static_cast<const C*>(call.domain) + b * call.pixels;
  if (call.domain && !call.channels_last && call.pixels % kGroup == 0 && inside % kGroup == 0)
    return load_group<C>(domain + inside % uint32_t(call.pixels));
  Group<C> m;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) m[i] = domain_at<C>(call, b, inside + i);
  return m;
}

template <class C>
__device__ C direction_of(C v, const UpdateSettings<C>& s) {
  return isinf(s.gain) ? direction<true>(v, s) : direction<false>(v, s);
}

template <class C, class I>
__device__ void step_group(const UpdateCall& call, const UpdateSettings<C>& s, int64_t b,
                           int64_t place, uint32_t inside, const Group<C>& grad) {
  const Group<C> adv = load_group<C>(static_cast<const I*>(call.adv) + place);
  const Group<C> image = load_group<C>(static_cast<const I*>(call.images) + place);
  const Group<C> m = domain_group<C>(call, b, inside);
  Group<C> v, out;
  if (call.momentum) v = load_group<C>(static_cast<const C*>(call.momentum) + place);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) v[i] = velocity(grad[i], call.momentum ? v[i] : C(0), s);
  if (call.momentum_out) store_group(static_cast<C*>(call.momentum_out) + place, v);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) out[i] = stepped(adv[i], image[i], m[i], direction_of(v[i], s), s);
  store_group(static_cast<I*>(call.adv_out) + place, out);
}

template <class C, class I>
__device__ void step_value(const UpdateCall& call, const UpdateSettings<C>& s, int64_t b,
                           int64_t place, uint32_t inside, C grad) {
  const C old = call.momentum ? static_cast<const C*>(call.momentum)[place] : C(0);
  const C v = velocity(grad, old, s);
  if (call.momentum_out) static_cast<C*>(call.momentum_out)[place] = v;
  const C adv = C(load(static_cast<const I*>(call.adv) + place));
  const C image = C(load(static_cast<const I*>(call.images) + place));
  const C m = domain_at<C>(call, b, inside);
  store(static_cast<I*>(call.adv_out) + place, stepped(adv, image, m, direction_of(v, s), s));
}

// An inactive image keeps its pixels and its momentum. `from` of `every` threads do it.
template <class C, class I>
__device__ void keep(const UpdateCall& call, const Extent& e, int64_t from, int64_t every) {
  for (int64_t place = e.start + from; place < e.end; place += every) {
    if (call.adv_out != call.adv)
      static_cast<I*>(call.adv_out)[place] = static_cast<const I*>(call.adv)[place];
    if (call.momentum_out && call.momentum_out != call.momentum)
      static_cast<C*>(call.momentum_out)[place] =
          call.momentum ? static_cast<const C*>(call.momentum)[place] : C(0);
  }
}

}  // namespace sdsgsm::cuda
