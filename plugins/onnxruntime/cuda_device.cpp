#include "cuda_device.h"

#if MAMBA_ORT_CUDA
#include <cuda_runtime_api.h>
#endif

namespace mamba_ort {

int current_device() {
  int device = 0;
#if MAMBA_ORT_CUDA
  cudaGetDevice(&device);  // where it fails, what follows says so in more words
#endif
  return device;
}

}  // namespace mamba_ort
