// Memory that is freed with its owner, and CUDA's error codes as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

namespace mamba_run {

// Throws Error, which begins with what failed.
void check(cudaError_t error, const char* what);

// Memory on the GPU, or of the host that the GPU reads and writes itself.
class Memory {
 public:
  enum class Place { kDevice, kHost };

  Memory() = default;
  Memory(size_t bytes, Place place);
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Memory();

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Memory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(place_, other.place_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  Place place_ = Place::kDevice;
};

}  // namespace mamba_run
