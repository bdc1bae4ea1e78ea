// The update of a batch. One pass: an image's gradient stays in the registers of one block, or of a
// cluster of blocks, between the reduction and the step. Two passes, for images beyond that: partial
// reductions, then the step, which starts at the end of the batch, where the gradient is in L2.
#include <cooperative_groups.h>

#include "device.h"
#include "launch.h"
#include "reduce.cuh"
#include "step.cuh"

namespace sdsgsm::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kMostRanks = 8;      // blocks of a cluster; more are not portable
constexpr int kPartGroups = 2048;  // groups that a block of two passes takes at the least
constexpr int kMostParts = 256;    // blocks of an image; each adds the partial reductions of all

int64_t groups_of(int64_t values) { return (values + kGroup - 1) / kGroup; }

// One pass over an image by `ranks` blocks, a cluster; a thread holds up to K groups.
template <class I, class G, int K>
__global__ void __launch_bounds__(kThreads, 1) one_pass(UpdateCall call, int ranks) {
  __shared__ double shared[kThreads / kWarp];
  __shared__ double of_block;
  const int64_t n = call.channels * call.pixels, b = blockIdx.x / ranks;
  const int rank = int(blockIdx.x % ranks);
  const Extent e(b, n);
  const int64_t thread = int64_t(rank) * blockDim.x + threadIdx.x;
  const int64_t threads = int64_t(ranks) * blockDim.x;
  if (call.active && !call.active[b]) return keep<float, I>(call, e, thread, threads);

  const G* grad = static_cast<const G*>(call.grad);
  Group<float> g[K];
  float sum = 0.0f;
  double squares = 0.0;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t group = k * threads + thread;
    if (group < e.groups) {
      g[k] = load_group<float>(grad + e.first + group * kGroup);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) reduce_value(call.normalize, g[k][i], sum, squares);
    }
  }
  const int64_t edge = rank == 0 ? e.edge(int(threadIdx.x)) : -1;
  const float g_edge = edge < 0 ? 0.0f : load(grad + edge);
  reduce_value(call.normalize, g_edge, sum, squares);

  double reduced = sum;
  if (call.normalize == Normalize::rms) reduced = squares;
  if (isinf(sum)) {  // again, in double
    reduced = g_edge < 0.0f ? -g_edge : g_edge;
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (k * threads + thread < e.groups)
        for (int i = 0; i < kGroup; ++i)
          reduced = joined(call.normalize, reduced, double(g[k][i] < 0.0f ? -g[k][i] : g[k][i]));
  }
  if (call.normalize != Normalize::none) reduced = over_block(call.normalize, reduced, shared);
#if __CUDA_ARCH__ >= 900
  if (ranks > 1 && call.normalize != Normalize::none) {
    const auto cluster = cooperative_groups::this_cluster();
    if (threadIdx.x == 0) of_block = reduced;
    cluster.sync();
    reduced = *cluster.map_shared_rank(&of_block, 0);
    for (int i = 1; i < ranks; ++i)
      reduced = joined(call.normalize, reduced, *cluster.map_shared_rank(&of_block, i));
    cluster.sync();  // no block leaves while another reads its memory
  }
#else
  (void)of_block;
#endif

  const auto s = settings_of<float>(call, b, reduced);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t group = k * threads + thread, place = e.first + group * kGroup;
    if (group < e.groups) step_group<float, I>(call, s, b, place, uint32_t(place - e.start), g[k]);
  }
  if (edge >= 0) step_value<float, I>(call, s, b, edge, uint32_t(edge - e.start), g_edge);
}

// Partial reduction of one of an image's parts. The blocks are those of image 0, then of image 1, …
template <class C, class G>
__global__ void __launch_bounds__(kThreads, 1) reduce_part(UpdateCall call, unsigned parts,
                                                           double* partial) {
  __shared__ double shared[kThreads / kWarp];
  const int64_t n = call.channels * call.pixels, b = blockIdx.x / parts, part = blockIdx.x % parts;
  const Extent e(b, n);
  const G* grad = static_cast<const G*>(call.grad);
  const int64_t size = (e.groups + parts - 1) / parts, from = part * size;
  const int64_t to = smaller(from + size, e.groups);
  double reduced = 0.0;
  for (int64_t group = from + threadIdx.x; group < to; group += blockDim.x) {
    const Group<C> g = load_group<C>(grad + e.first + group * kGroup);
    C sum = 0;
    double squares = 0.0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) reduce_value(call.normalize, g[i], sum, squares);
    double more = call.normalize == Normalize::rms ? squares : double(sum);
    if (isinf(more)) {
      more = 0.0;
      for (int i = 0; i < kGroup; ++i)
        more = joined(call.normalize, more, double(g[i] < C(0) ? -g[i] : g[i]));
    }
    reduced = joined(call.normalize, reduced, more);
  }
  const int64_t edge = part == 0 ? e.edge(int(threadIdx.x)) : -1;
  if (edge >= 0) {
    const double g = double(load(grad + edge)), magnitude = g < 0.0 ? -g : g;
    const double more = call.normalize == Normalize::rms ? g * g : magnitude;
    reduced = joined(call.normalize, reduced, more);
  }
  reduced = over_block(call.normalize, reduced, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = reduced;
}

// The step of the same part, the blocks in the reverse order.
template <class C, class I, class G>
__global__ void __launch_bounds__(kThreads, 1) step_part(UpdateCall call, unsigned parts,
                                                         const double* partial) {
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const int64_t n = call.channels * call.pixels, b = block / parts, part = block % parts;
  const Extent e(b, n);
  const int64_t thread = part * blockDim.x + threadIdx.x;
  if (call.active && !call.active[b])
    return keep<C, I>(call, e, thread, int64_t(parts) * blockDim.x);
  double reduced = 0.0;
  if (call.normalize != Normalize::none)
    for (unsigned i = 0; i < parts; ++i)
      reduced = joined(call.normalize, reduced, partial[b * parts + i]);
  const auto s = settings_of<C>(call, b, reduced);
  const G* grad = static_cast<const G*>(call.grad);
  const int64_t size = (e.groups + parts - 1) / parts, from = part * size;
  const int64_t to = smaller(from + size, e.groups);
  for (int64_t group = from + threadIdx.x; group < to; group += blockDim.x) {
    const int64_t place = e.first + group * kGroup;
    step_group<C, I>(call, s, b, place, uint32_t(place - e.start), load_group<C>(grad + place));
  }
  const int64_t edge = part == 0 ? e.edge(int(threadIdx.x)) : -1;
  if (edge >= 0) step_value<C, I>(call, s, b, edge, uint32_t(edge - e.start), C(load(grad + edge)));
}

// How an image of so many values is taken.
struct Plan {
  int ranks, groups_a_thread;  // of one pass; 0: two passes
  unsigned threads, parts;
};

Plan plan_of(int64_t values, DType image_type, bool clusters) {
  const int64_t groups = groups_of(values);
  const int64_t most = smaller<int64_t>(kMostParts, (groups + kPartGroups - 1) / kPartGroups);
  const Plan two{0, 0, kThreads, unsigned(larger<int64_t>(most, 1))};
  if (image_type == DType::float64) return two;
  if (groups <= 2 * kThreads) {
    const int64_t each = groups <= kThreads ? 1 : 2, threads = (groups + each - 1) / each;
    return {1, int(each), unsigned((threads + kWarp - 1) / kWarp * kWarp), 0};
  }
  const int64_t at_once = int64_t(kMostRanks) * kThreads;
  if (!clusters || groups > 5 * at_once) return two;
  if (groups <= 2 * at_once)
    return {int((groups + 2 * kThreads - 1) / (2 * kThreads)), 2, kThreads, 0};
  return {kMostRanks, 5, kThreads, 0};
}

template <class C, class I, class G>
void launch_two_passes(const UpdateCall& call, const Plan& plan, double* scratch, cudaStream_t on) {
  const int64_t blocks = call.batch * plan.parts;
  if (call.normalize != Normalize::none)
    launch_kernel(reduce_part<C, G>, blocks, plan.threads, on, 1, call, plan.parts, scratch);
  launch_kernel(step_part<C, I, G>, blocks, plan.threads, on, 1, call, plan.parts, scratch);
}

template <class I, class G>
void launch(const UpdateCall& call, const Plan& plan, double* scratch, cudaStream_t on) {
  if (!plan.ranks) return launch_two_passes<float, I, G>(call, plan, scratch, on);
  const auto kernel = plan.groups_a_thread == 1   ? one_pass<I, G, 1>
                      : plan.groups_a_thread == 2 ? one_pass<I, G, 2>
                                                  : one_pass<I, G, 5>;
  const int64_t blocks = call.batch * plan.ranks;
  launch_kernel(kernel, blocks, plan.threads, on, plan.ranks, call, plan.ranks);
}

template <class I>
void launch_for(const UpdateCall& call, const Plan& plan, double* scratch, cudaStream_t on) {
  switch (call.grad_type) {
    case DType::float16: return launch<I, Half>(call, plan, scratch, on);
    case DType::bfloat16: return launch<I, BFloat16>(call, plan, scratch, on);
    case DType::float32: return launch<I, float>(call, plan, scratch, on);
    case DType::float64: break;
  }
  throw std::runtime_error("CUDA: float64 gradients go with float64 images");
}

bool has_clusters(int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, cudaDevAttrClusterLaunch, device));
  return value != 0;
}

}  // namespace

int64_t update_scratch(int64_t batch, int64_t values, DType image_type, int device) {
  const Plan plan = plan_of(values, image_type, has_clusters(device));
  return plan.ranks ? 0 : batch * int64_t(plan.parts);
}

void update(const UpdateCall& call, int device, uintptr_t stream, uintptr_t scratch) {
  if (call.channels * call.pixels > INT32_MAX || call.batch > INT32_MAX / kMostParts)
    throw std::runtime_error("CUDA: an image of 2^31 values or a batch of 2^23 images");
  const OnDevice guard(device);
  const Plan plan = plan_of(call.channels * call.pixels, call.image_type, has_clusters(device));
  const cudaStream_t on = stream_of(stream);
  double* partial = reinterpret_cast<double*>(scratch);
  switch (call.image_type) {
    case DType::float16: return launch_for<Half>(call, plan, partial, on);
    case DType::bfloat16: return launch_for<BFloat16>(call, plan, partial, on);
    case DType::float32: return launch_for<float>(call, plan, partial, on);
    case DType::float64:
      return launch_two_passes<double, double, double>(call, plan, partial, on);
  }
}

}  // namespace sdsgsm::cuda
