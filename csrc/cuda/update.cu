// The update of a batch. One pass: an image's gradient stays in the shared memory of one block, or of
// a cluster of blocks, between the reduction and the step, and what the step needs first is on its
// way meanwhile. Two passes, for images beyond that: partial reductions, then the step, which starts
// at the end of the batch, where the gradient is in L2.
#include <cooperative_groups.h>

#include "device.h"
#include "launch.h"
#include "reduce.cuh"
#include "shared.cuh"
#include "step.cuh"

namespace sdsgsm::cuda {
namespace {

constexpr unsigned kThreads = 256, kResident = 3;  // three blocks a multiprocessor hide latency
constexpr unsigned kMostRanks = 8;                 // blocks of a portable cluster
constexpr unsigned kPartGroups = 4096;  // groups of a block of two passes, until kMostParts
constexpr unsigned kMostParts = 256;    // blocks of an image; each adds the partial reductions of all

// Groups whose inputs a thread has on their way at a time.
template <class C>
constexpr unsigned kAhead = sizeof(C) == 8 ? 1 : 3;

// A block's shared memory in one pass; the gradient's groups follow.
struct alignas(16) Shared {
  double of_warp[kThreads / kWarp], of_block[kMostRanks];
  float inverse;
};
constexpr int64_t kMostGroups = (kSharedBytes - int64_t(sizeof(Shared))) / (kGroup * 4);

// The reduction of an image from those of its cluster's blocks: each block gives its own to all. The
// first barrier, which every thread has arrived at before, says that all blocks have begun.
__device__ __forceinline__ double over_cluster(Normalize normalize, double whole, unsigned rank,
                                               unsigned ranks, Shared& shared) {
#if defined(CUDA_ON_CPU) || __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  cluster.barrier_wait();
  if (threadIdx.x == 0)
    for (unsigned i = 0; i < ranks; ++i)
      *cluster.map_shared_rank(&shared.of_block[rank], int(i)) = whole;
  cluster.sync();
  whole = shared.of_block[0];
  for (unsigned i = 1; i < ranks; ++i) whole = joined(normalize, whole, shared.of_block[i]);
#else
  __trap();  // has_clusters() sees to it that this cannot be
#endif
  return whole;
}

// Without the order of memory accesses that cooperative groups would ask for, and wait for.
__device__ __forceinline__ void arrive_at_cluster() {
#if defined(CUDA_ON_CPU)
  cooperative_groups::this_cluster().barrier_arrive();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;");
#endif
}

// 1 / N of equation 5 for all threads, worked out by one.
__device__ __forceinline__ float inverse_for_all(const Job& job, double whole, unsigned rank,
                                                 unsigned ranks, Shared& shared) {
  const Normalize normalize = job.call.normalize;
  if (normalize == Normalize::none) return 1.0f;
  whole = over_block(normalize, whole, shared.of_warp);
  if (ranks > 1) whole = over_cluster(normalize, whole, rank, ranks, shared);
  if (threadIdx.x == 0) shared.inverse = float(inverse_norm(normalize, whole, job.size));
  __syncthreads();
  return shared.inverse;
}

// One pass over an image by the blocks of a cluster.
template <class I, class G>
__global__ void __launch_bounds__(kThreads, kResident) one_pass(Job job) {
  Shared& shared = *static_cast<Shared*>(shared_memory());
  Packed<G>* held = reinterpret_cast<Packed<G>*>(&shared + 1);
  constexpr unsigned kMany = kAhead<float>;
  const UpdateCall& call = job.call;
  const unsigned ranks = job.parts.divisor, b = job.parts.quotient(blockIdx.x);
  const unsigned rank = blockIdx.x - b * ranks;
  const Extent e(b, job.size);
  const Image<float, I> at(call, b, e.start);
  if (call.active && !call.active[b])
    return keep(at, e.size, rank * blockDim.x + threadIdx.x, ranks * blockDim.x);
  if (ranks > 1 && call.normalize != Normalize::none) arrive_at_cluster();

  const G* grad = static_cast<const G*>(call.grad) + e.start;
  const Part part(e, rank, job.each);
  const unsigned mine = part.from + threadIdx.x, stride = blockDim.x;
  Packed<G> g[kMany];
  Inputs<float, I> inputs[kMany];
  const auto read_grad = [&](unsigned from) {
#pragma unroll
    for (unsigned k = 0; k < kMany; ++k)
      if (from + k * stride < part.to) g[k] = load_packed(grad + e.place(from + k * stride));
  };
  const auto read_inputs = [&](unsigned from) {
#pragma unroll
    for (unsigned k = 0; k < kMany; ++k)
      if (from + k * stride < part.to) inputs[k].read(job, at, e.place(from + k * stride));
  };

  read_grad(mine);
  const uint32_t edge = rank == 0 ? e.edge(threadIdx.x) : e.size;
  const float g_edge = edge < e.size ? load(grad + edge) : 0.0f;
  read_inputs(mine);
  double whole = with_value(call.normalize, 0.0, g_edge);
  for (unsigned from = mine; from < part.to;) {
#pragma unroll
    for (unsigned k = 0; k < kMany; ++k)
      if (from + k * stride < part.to) {
        held[from + k * stride - part.from] = g[k];
        whole = with_group(call.normalize, whole, unpacked<float, G>(g[k]));
      }
    from += kMany * stride;
    read_grad(from);
  }

  // Not sooner: registers are full of inputs until the loop below.
  const auto s = settings_of<float>(call, b, inverse_for_all(job, whole, rank, ranks, shared));
  for (unsigned from = mine; from < part.to;) {
#pragma unroll
    for (unsigned k = 0; k < kMany; ++k)
      if (from + k * stride < part.to)
        step_group(at, s, e.place(from + k * stride), inputs[k],
                   unpacked<float, G>(held[from + k * stride - part.from]));
    from += kMany * stride;
    read_inputs(from);
  }
  if (edge < e.size) step_value(job, at, s, edge, g_edge);
}

// Partial reduction of one of an image's parts. The blocks are those of image 0, then of image 1, …
template <class C, class G>
__global__ void __launch_bounds__(kThreads, kResident) reduce_part(Job job, double* partial) {
  constexpr unsigned kMany = 4;
  const Normalize normalize = job.call.normalize;
  const unsigned b = job.parts.quotient(blockIdx.x), index = job.parts.remainder(blockIdx.x);
  const Extent e(b, job.size);
  const G* grad = static_cast<const G*>(job.call.grad) + e.start;
  const Part part(e, index, job.each);
  double whole = 0.0;
  for (unsigned from = part.from + threadIdx.x; from < part.to; from += kMany * blockDim.x) {
    Packed<G> g[kMany];
#pragma unroll
    for (unsigned k = 0; k < kMany; ++k)
      if (from + k * blockDim.x < part.to) g[k] = load_packed(grad + e.place(from + k * blockDim.x));
#pragma unroll
    for (unsigned k = 0; k < kMany; ++k)
      if (from + k * blockDim.x < part.to)
        whole = with_group(normalize, whole, unpacked<C, G>(g[k]));
  }
  const uint32_t edge = index == 0 ? e.edge(threadIdx.x) : e.size;
  if (edge < e.size) whole = with_value(normalize, whole, load(grad + edge));
  whole = over_block(normalize, whole, static_cast<double*>(shared_memory()));
  if (threadIdx.x == 0) partial[blockIdx.x] = whole;
}

// The reduction of an image from those of its parts, by a warp.
__device__ __forceinline__ double over_parts(Normalize normalize, const double* partial,
                                             unsigned parts) {
  double whole = 0.0;
  if (normalize == Normalize::none) return whole;
  for (unsigned i = threadIdx.x; i < parts; i += kWarp) whole = joined(normalize, whole, partial[i]);
  return over_lanes(normalize, whole, kWarp);
}

// The step of the same part, the blocks in the reverse order.
template <class C, class I, class G>
__global__ void __launch_bounds__(kThreads, kResident) step_part(Job job, const double* partial) {
  constexpr unsigned kMany = kAhead<C> == 1 ? 1 : 2;
  const UpdateCall& call = job.call;
  const unsigned block = gridDim.x - 1 - blockIdx.x, parts = job.parts.divisor;
  const unsigned b = job.parts.quotient(block), index = job.parts.remainder(block);
  const Extent e(b, job.size);
  const Image<C, I> at(call, b, e.start);
  if (call.active && !call.active[b])
    return keep(at, e.size, index * blockDim.x + threadIdx.x, parts * blockDim.x);
  double* inverse = static_cast<double*>(shared_memory());
  auto s = settings_of<C>(call, b, 0.0);
  if (threadIdx.x < kWarp) {
    const double whole = over_parts(call.normalize, partial + b * parts, parts);
    if (threadIdx.x == 0) *inverse = inverse_norm(call.normalize, whole, job.size);
  }
  __syncthreads();
  s.inverse_norm = C(*inverse);
  const G* grad = static_cast<const G*>(call.grad) + e.start;
  const Part part(e, index, job.each);
  for (unsigned from = part.from + threadIdx.x; from < part.to; from += kMany * blockDim.x) {
    Packed<G> g[kMany];
    Inputs<C, I> inputs[kMany];
#pragma unroll
    for (unsigned k = 0; k < kMany; ++k)
      if (from + k * blockDim.x < part.to) {
        const uint32_t place = e.place(from + k * blockDim.x);
        g[k] = load_packed(grad + place);
        inputs[k].read(job, at, place);
      }
#pragma unroll
    for (unsigned k = 0; k < kMany; ++k)
      if (from + k * blockDim.x < part.to)
        step_group(at, s, e.place(from + k * blockDim.x), inputs[k], unpacked<C, G>(g[k]));
  }
  const uint32_t edge = index == 0 ? e.edge(threadIdx.x) : e.size;
  if (edge < e.size) step_value(job, at, s, edge, C(load(grad + edge)));
}

// How an image of so many values is taken.
struct Plan {
  unsigned ranks;  // blocks of one pass; 0: two passes
  unsigned parts;  // of two passes
  unsigned threads;
};

// Clusters of a power of two; no more threads than have work.
Plan plan_of(int64_t values, DType image_type, bool clusters) {
  const int64_t groups = groups_of(values), parts = (groups + kPartGroups - 1) / kPartGroups;
  const int64_t warps = (groups + kAhead<float> * kWarp - 1) / (kAhead<float> * kWarp);
  const unsigned threads = unsigned(smaller<int64_t>(warps * kWarp, kThreads));
  if (image_type != DType::float64)
    for (unsigned ranks = 1; ranks <= (clusters ? kMostRanks : 1); ranks *= 2)
      if (groups <= int64_t(ranks) * kMostGroups) return {ranks, 0, threads};
  return {0, unsigned(larger<int64_t>(smaller<int64_t>(parts, kMostParts), 1)), kThreads};
}

template <class C, class I, class G>
void launch_two_passes(const UpdateCall& call, const Plan& plan, double* scratch, cudaStream_t on) {
  const Job job(call, plan.parts);
  const Grid grid{call.batch * plan.parts, plan.threads, 1, kThreads / kWarp * sizeof(double), on};
  if (call.normalize != Normalize::none)
    launch_kernel(reduce_part<C, G>, grid, job, scratch);
  launch_kernel(step_part<C, I, G>, grid, job, scratch);
}

template <class I, class G>
void launch(const UpdateCall& call, const Plan& plan, double* scratch, cudaStream_t on) {
  if (!plan.ranks) return launch_two_passes<float, I, G>(call, plan, scratch, on);
  const Job job(call, plan.ranks);
  const int64_t shared = int64_t(sizeof(Shared)) + job.each * int64_t(sizeof(Packed<G>));
  const Grid grid{call.batch * plan.ranks, plan.threads, plan.ranks, shared, on};
  launch_kernel(one_pass<I, G>, grid, job);
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
