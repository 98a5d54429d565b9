// A row of logits as the blocks of a cluster read it: each thread a run of tokens side by side, 16
// bytes at a time, so that sums over threads in order are sums over tokens in order.
#pragma once

#include <cstdint>

#include "common/cuda/cluster.cuh"
#include "common/cuda/numeric.cuh"

namespace mamba {
namespace choice {

constexpr int kThreads = 1024;  // of a block
constexpr int kWarps = kThreads / 32;
static_assert(kWarps == 32, "a warp adds up the warps");
constexpr int kMostBlocks = 8;  // of a cluster
using Mass = unsigned long long;

template <typename T>
struct Row {
  static constexpr int kPack = 16 / sizeof(T);
  static constexpr int kHeld = 4;  // packs that a thread asks for at once, and keeps

  const T* logits;
  int count;       // tokens
  int shift;       // tokens that lie between an address of 16 bytes and the row
  int begin, end;  // packs of this thread
  Pack<T, kPack> held[kHeld];

  __device__ Row(const T* row, int vocab_size) : logits(row), count(vocab_size) {
    shift = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    const int packs = (count + shift + kPack - 1) / kPack;
    const int threads = cluster_blocks() * kThreads;
    const int width = (packs + threads - 1) / threads;
    begin = min((cluster_rank() * kThreads + static_cast<int>(threadIdx.x)) * width, packs);
    end = min(begin + width, packs);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) held[i] = pack(begin + i);
  }

  // Token of the first number of a pack; it may lie outside of the row, as others of the pack may.
  __device__ int token(int pack) const { return pack * kPack - shift; }

  __device__ Pack<T, kPack> pack(int pack) const {
    Pack<T, kPack> numbers = {};
    const int first = token(pack);
    if (pack >= end) return numbers;
    if (first >= 0 && first + kPack <= count) {
      return *reinterpret_cast<const Pack<T, kPack>*>(logits + first);
    }
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (first + i >= 0 && first + i < count) numbers.values[i] = logits[first + i];
    }
    return numbers;
  }

  // body(token, logit) for this thread's tokens, in order.
  template <typename Body>
  __device__ void each(Body body) const {
#pragma unroll 1
    for (int at = begin; at < end; ++at) each_of(at, pack(at), body);
  }

  // The same, from what is held as far as it goes.
  template <typename Body>
  __device__ void each_held(Body body) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (begin + i < end) each_of(begin + i, held[i], body);
    }
#pragma unroll 1
    for (int at = begin + kHeld; at < end; ++at) each_of(at, pack(at), body);
  }

 private:
  template <typename Body>
  __device__ void each_of(int at, const Pack<T, kPack>& numbers, Body body) const {
    const int first = token(at);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (first + i >= 0 && first + i < count) body(first + i, to_float(numbers.values[i]));
    }
  }
};

// Waits for every thread of the blocks that share a row.
__device__ __forceinline__ void row_barrier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cluster_barrier();
#else
  __syncthreads();
#endif
}

// The sum of a warp's threads up to and with this one.
__device__ inline Mass warp_sums(Mass sum) {
  for (int offset = 1; offset < 32; offset *= 2) {
    const Mass left = __shfl_up_sync(~0u, sum, offset);
    if (threadIdx.x % 32 >= offset) sum += left;
  }
  return sum;
}

// Sums over the threads of a block, in order. warps holds kWarps numbers; all may write there again
// after it.
struct Sums {
  Mass before;  // of the threads before this one
  Mass total;
};

__device__ inline Sums sums_in_order(Mass own, Mass* warps) {
  const int warp = threadIdx.x / 32;
  const Mass upto = warp_sums(own);
  if (threadIdx.x % 32 == 31) warps[warp] = upto;
  __syncthreads();
  if (warp == 0) warps[threadIdx.x] = warp_sums(warps[threadIdx.x]);
  __syncthreads();
  const Sums sums = {upto - own + (warp > 0 ? warps[warp - 1] : 0), warps[kWarps - 1]};
  __syncthreads();
  return sums;
}

}  // namespace choice
}  // namespace mamba
