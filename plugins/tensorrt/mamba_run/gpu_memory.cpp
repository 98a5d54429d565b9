#include "gpu_memory.h"

#include <string>

#include "error.h"

namespace mamba_run {

void check(cudaError_t error, const char* what) {
  if (error == cudaErrorMemoryAllocation)
    throw Error(std::string("failed to allocate GPU memory: ") + what);
  if (error != cudaSuccess) throw Error(std::string(what) + ": " + cudaGetErrorString(error));
}

Memory::Memory(size_t bytes, Place place) : bytes_(bytes), place_(place) {
  const std::string what = std::to_string(bytes >> 20) + " MiB more are needed";
  check(place == Place::kHost ? cudaMallocHost(&data_, bytes) : cudaMalloc(&data_, bytes),
        what.c_str());
}

Memory::~Memory() {
  if (place_ == Place::kHost) {
    cudaFreeHost(data_);
  } else {
    cudaFree(data_);
  }
}

}  // namespace mamba_run
