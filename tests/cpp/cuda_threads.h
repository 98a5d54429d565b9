// Stands in for CUDA where a kernel's source is compiled for a CPU with a thread for each of a
// block's, for ThreadSanitizer to watch what the block's roles hand to one another. Barriers order
// what CUDA's do and no more. Lanes of a warp hand nothing over: what a shuffle or a product of
// matrices gives is wrong here, where it is read and written is not.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __launch_bounds__(...)
#define __grid_constant__
#undef __forceinline__
#define __forceinline__ inline

inline thread_local uint3 threadIdx, blockIdx;

namespace threads {

inline unsigned char* shared_memory;
inline int count;    // threads of the block
inline int planted;  // the number of the hand-over that is weakened, 0 for none

// How often each barrier was arrived at. Who arrives releases; who waits acquires from them all,
// for nothing but arrivals writes to the number.
struct alignas(128) Barrier {
  std::atomic<int64_t> arrivals{0};
};
inline Barrier barriers[16];

inline int64_t arrive(int barrier) {
  return barriers[barrier].arrivals.fetch_add(1, std::memory_order_release);
}
inline void wait(int barrier, int threads, std::memory_order order = std::memory_order_acquire) {
  const int64_t target = (arrive(barrier) / threads + 1) * threads;
  while (barriers[barrier].arrivals.load(order) < target) sched_yield();
}
// As long as a wait takes, but what the others wrote before may be seen later.
inline void wait_unordered(int barrier, int threads) {
  wait(barrier, threads, std::memory_order_relaxed);
}

}  // namespace threads

namespace mamba {
inline bool is_planted(int number) { return threads::planted == number; }
}  // namespace mamba

inline void __syncthreads() { threads::wait(0, threads::count); }
template <typename T>
T __shfl_sync(unsigned, T value, int, int = 32) {
  return value;
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int, int = 32) {
  return value;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline size_t __cvta_generic_to_shared(const void* address) {
  return reinterpret_cast<size_t>(address);
}
using std::max;
using std::min;
