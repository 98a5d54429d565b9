// What the threads of a block have summed, added up: the end of a GEMV.
#pragma once

#include <cuda_runtime.h>

namespace mamba {

// partial[i] = the sum of partial[warp * Count + i] over the block's warps, in a fixed order. Every
// thread of the block must call it, after its own numbers are there; all may read then.
template <int Count, int Threads>
__device__ __forceinline__ void add_up_warps(float* partial) {
  __syncthreads();
  // Each element is read and written by one thread. One turn, mostly: not worth instructions of
  // several, which are read from memory.
#pragma unroll 1
  for (int i = threadIdx.x; i < Count; i += Threads) {
    float sum = partial[i];
#pragma unroll
    for (int other = 1; other < Threads / 32; ++other) sum += partial[other * Count + i];
    partial[i] = sum;
  }
  __syncthreads();
}

// Lanes threads lie side by side along the columns, Width columns each, and the block's other
// groups of so many threads have other shares of the depth.
template <int Lanes, int Width, int Threads, int Rows>
struct BlockSums {
  static constexpr int kColumns = Lanes * Width, kWarps = Threads / 32;
  static constexpr int kSharedFloats = kWarps * Rows * kColumns;
  static_assert(Lanes >= 1 && Lanes <= 32 && 32 % Lanes == 0);

  // partial[row * columns + column] = the sums, in a fixed order, for every thread to read after it
  // returns. Every thread of the block must call it.
  __device__ __forceinline__ static void add_up(const float (&sums)[Rows][Width], float* partial) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
#pragma unroll
      for (int j = 0; j < Width; ++j) {
        float sum = sums[r][j];
#pragma unroll
        for (int offset = Lanes; offset < 32; offset *= 2) {
          sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        }
        if (lane < Lanes) partial[(warp * Rows + r) * kColumns + lane * Width + j] = sum;
      }
    }
    add_up_warps<Rows * kColumns, Threads>(partial);
  }
};

}  // namespace mamba
