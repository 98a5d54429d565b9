// Memory for the tensors of check_kernels, of the CPU or of the GPU that is current.
//
// Each tensor has an allocation of its exact size, for AddressSanitizer and compute-sanitizer to
// watch. With guards, for a machine without those, it lies between two zones of NaN that a kernel
// must leave alone, and that make NaN of what it reads there.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#if CHECK_CUDA
#include <cuda_runtime_api.h>
#endif

namespace check {

enum class Device { kCpu, kCuda };

struct Options {
  Device device = Device::kCpu;
  bool guards = false;
};

[[noreturn]] inline void fail(const std::string& text) {
  std::fflush(stdout);
  std::fprintf(stderr, "check_kernels: %s\n", text.c_str());
  std::exit(1);
}

#if CHECK_CUDA
inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(error));
}
inline void* allocate_on_gpu(size_t bytes) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes), "cudaMalloc");
  return memory;
}
inline void free_on_gpu(void* memory) { cudaFree(memory); }
inline void copy_on_gpu(void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "copy");
  // From pageable memory it returns ahead of the device, and no other stream waits for it.
  check_cuda(cudaDeviceSynchronize(), "copy");
}
#else
inline void* allocate_on_gpu(size_t) { fail("this program was built without CUDA"); }
inline void free_on_gpu(void*) {}
inline void copy_on_gpu(void*, const void*, size_t) {}
#endif

constexpr char kPoison = '\xff';  // of which every dtype makes NaN

class Memory {
 public:
  Memory(const Options& options, size_t bytes)
      : options_(options), bytes_(bytes), zone_(options.guards ? kZone : 0) {
    const size_t all = bytes_ + 2 * zone_;
    start_ = is_cuda() ? allocate_on_gpu(all) : std::malloc(all);
    if (!start_ && all) fail("no memory");
    write(start_, std::vector<char>(all, kPoison));
  }
  ~Memory() { is_cuda() ? free_on_gpu(start_) : std::free(start_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  Memory(Memory&& other) noexcept
      : options_(other.options_),
        bytes_(other.bytes_),
        zone_(other.zone_),
        start_(std::exchange(other.start_, nullptr)) {}

  void* data() const { return static_cast<char*>(start_) + zone_; }
  size_t bytes() const { return bytes_; }

  void set(const std::vector<char>& content) { write(data(), content); }
  void poison() { set(std::vector<char>(bytes_, kPoison)); }
  std::vector<char> get() const { return read(data(), bytes_); }

  // Whether nothing was written beside it.
  bool is_intact() const {
    for (const char* zone :
         {static_cast<const char*>(start_), static_cast<const char*>(data()) + bytes_}) {
      if (read(zone, zone_) != std::vector<char>(zone_, kPoison)) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kZone = 4096;  // keeps the alignment of an allocation

  bool is_cuda() const { return options_.device == Device::kCuda; }
  void write(void* to, const std::vector<char>& content) {
    if (content.empty()) return;
    if (is_cuda()) return copy_on_gpu(to, content.data(), content.size());
    std::memcpy(to, content.data(), content.size());
  }
  std::vector<char> read(const void* from, size_t count) const {
    std::vector<char> content(count);
    if (content.empty()) return content;
    if (is_cuda()) {
      copy_on_gpu(content.data(), from, count);
    } else {
      std::memcpy(content.data(), from, count);
    }
    return content;
  }

  Options options_;
  size_t bytes_, zone_;
  void* start_ = nullptr;
};

}  // namespace check
