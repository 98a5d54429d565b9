// Kernels that start while the one ahead of them in the stream still runs (sm_90 and later).
#pragma once

#include <cuda_runtime.h>

namespace mamba {

// Lets the next kernel of the stream start its own preparations on free multiprocessors.
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the stream's earlier kernels have ended and their writes can be seen. Before it only
// weights may be read: any other memory may still be written, or read, by those kernels.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Both. Early: the next kernel may start at once, so that its weights are on their way for longer;
// else only when the kernel ahead has ended, so that no more than two kernels share the
// multiprocessors: quicker where the weights are codes, of which a block keeps few bytes under way.
__device__ __forceinline__ void wait_and_let_next_start(bool early) {
  if (early) let_next_kernel_start();
  wait_for_earlier_kernels();
  if (!early) let_next_kernel_start();
}

// Brings a line into the L2 cache, whoever may be writing it: allowed before the wait.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// overlaps: the kernel may start before the one ahead of it in the stream has ended.
template <typename... Parameters>
cudaError_t launch_overlapping(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                               cudaStream_t stream, bool overlaps, const Parameters&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlaps ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// The same in clusters of blocks, with as much shared memory as asked for.
template <typename... Parameters>
cudaError_t launch_overlapping_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 cluster,
                                        dim3 block, size_t shared, cudaStream_t stream,
                                        const Parameters&... arguments) {
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(shared))) {
    return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster.x;
  attributes[1].val.clusterDim.y = cluster.y;
  attributes[1].val.clusterDim.z = cluster.z;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster.x * cluster.y * cluster.z > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace mamba
