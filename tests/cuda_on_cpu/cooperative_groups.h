// Thread block clusters for tests without a GPU.
#pragma once
#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  void barrier_arrive() const { arrived_in = meeting->arrive(); }
  void barrier_wait() const { meeting->wait(arrived_in); }
  void sync() const { meeting->meet(); }
  template <class T>
  T* map_shared_rank(T* at, int rank) const {
    const auto offset = reinterpret_cast<unsigned char*>(at) - own_block().memory();
    return reinterpret_cast<T*>((*cluster)[size_t(rank)]->memory() + offset);
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
