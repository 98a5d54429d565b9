// Blocks of a cluster (sm_90 and later): they wait for one another, and read one another's shared
// memory. On older architectures nobody waits here, and a block is alone in its cluster.
#pragma once

#include "common/cuda/mma.cuh"

namespace mamba {

__device__ __forceinline__ int cluster_rank() {
  unsigned int rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}

__device__ __forceinline__ int cluster_blocks() {
  unsigned int blocks = 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
#endif
  return static_cast<int>(blocks);
}

// Says that this thread has come so far; cluster_wait, after it, waits for the others'.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// What each thread has written to shared memory before, the others may read after it.
__device__ __forceinline__ void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// The place of own, which is in shared memory, in another block of the cluster; that must have
// started, and not have ended.
template <typename T>
__device__ __forceinline__ T* in_block(T* own, int block) {
  T* theirs = own;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(own), "r"(block));
#endif
  return theirs;
}

// Four numbers in the shared memory of another block of the cluster, at the same place as `own`.
__device__ __forceinline__ float4 load_from_block(const float* own, int block) {
  float4 four = {};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 place;\nmapa.shared::cluster.u32 place, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [place];\n}"
      : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
      : "r"(shared_address(own)), "r"(block)
      : "memory");
#endif
  return four;
}

}  // namespace mamba
