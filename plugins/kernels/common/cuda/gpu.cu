#include <cuda_runtime.h>

#include <mutex>

#include "common/cuda/gpu.cuh"

namespace mamba {

const Gpu& current_gpu() {
  constexpr int kMost = 64;
  static Gpu known[kMost];
  static std::once_flag asked[kMost];
  static const Gpu kNone = {};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMost) return kNone;
  std::call_once(asked[device], [device] {
    Gpu& gpu = known[device];
    cudaDeviceGetAttribute(&gpu.major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&gpu.minor, cudaDevAttrComputeCapabilityMinor, device);
    cudaDeviceGetAttribute(&gpu.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&gpu.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  });
  return known[device];
}

}  // namespace mamba
