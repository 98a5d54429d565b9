// Blocks of a cluster (sm_90 and later): they wait for one another, and read one another's shared
// memory. On older architectures everything here compiles to nothing.
#pragma once

#include "common/cuda/mma.cuh"

namespace mamba {

// What each thread has written to shared memory before, the others may read after it.
__device__ __forceinline__ void cluster_barrier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
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
