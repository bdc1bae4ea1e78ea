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
constexpr int kPartGroups = 2048;  // groups of a block of two passes, until kMostParts are reached
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
  const int64_t edge = rank == 0 ? e.edge(int(threadIdx.x)) : -1;
  const float g_edge = edge < 0 ? 0.0f : load(grad + edge);
  double whole = reduced(call.normalize, double(g_edge));
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t group = k * threads + thread;
    if (group < e.groups) g[k] = load_group<float>(grad + e.first + group * kGroup);
  }
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (k * threads + thread < e.groups)
      whole = joined(call.normalize, whole, reduced(call.normalize, g[k]));
  if (call.normalize != Normalize::none) whole = over_block(call.normalize, whole, shared);
#if __CUDA_ARCH__ >= 900
  if (ranks > 1 && call.normalize != Normalize::none) {
    const auto cluster = cooperative_groups::this_cluster();
    if (threadIdx.x == 0) of_block = whole;
    cluster.sync();
    whole = *cluster.map_shared_rank(&of_block, 0);
    for (int i = 1; i < ranks; ++i)
      whole = joined(call.normalize, whole, *cluster.map_shared_rank(&of_block, i));
    cluster.sync();  // no block leaves while another reads its memory
  }
#else
  (void)of_block;
  if (ranks > 1) __trap();  // has_clusters() sees to it that this cannot be
#endif

  const auto s = settings_of<float>(call, b, inverse_norm(call.normalize, whole, n));
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
  double whole = 0.0;
  for (int64_t group = from + threadIdx.x; group < to; group += blockDim.x) {
    const Group<C> g = load_group<C>(grad + e.first + group * kGroup);
    whole = joined(call.normalize, whole, reduced(call.normalize, g));
  }
  const int64_t edge = part == 0 ? e.edge(int(threadIdx.x)) : -1;
  if (edge >= 0)
    whole = joined(call.normalize, whole, reduced(call.normalize, double(load(grad + edge))));
  whole = over_block(call.normalize, whole, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = whole;
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
  double whole = 0.0;
  if (call.normalize != Normalize::none)
    for (unsigned i = 0; i < parts; ++i)
      whole = joined(call.normalize, whole, partial[b * parts + i]);
  const auto s = settings_of<C>(call, b, inverse_norm(call.normalize, whole, n));
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

// Ranks and groups a thread of one pass, the fewest first. Clusters of a power of two.
constexpr int kOptions[][2] = {{1, 1}, {1, 2}, {2, 2}, {4, 2}, {8, 2}, {8, 5}};

Plan plan_of(int64_t values, DType image_type, bool clusters) {
  const int64_t groups = groups_of(values), parts = (groups + kPartGroups - 1) / kPartGroups;
  const Plan two{0, 0, kThreads, unsigned(larger<int64_t>(smaller<int64_t>(parts, kMostParts), 1))};
  if (image_type == DType::float64) return two;
  for (const auto [ranks, each] : kOptions) {
    const int64_t threads = (groups + ranks * each - 1) / (ranks * each);
    if (threads <= kThreads && (ranks == 1 || clusters))
      return {ranks, each, unsigned((threads + kWarp - 1) / kWarp * kWarp), 0};
  }
  return two;
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
  throw std::runtime_error("grad: float64 goes with float64 images only");
}

bool has_clusters(int device) {
  if (!SDSGSM_CLUSTERS) return false;
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
    throw std::runtime_error("images: expected less than 2^31 values each and less than 2^23 of them");
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
