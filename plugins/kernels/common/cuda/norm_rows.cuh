// RMSNorm (arXiv:1910.07467) of many rows. The numbers of a row lie in the registers of its
// threads. The blocks that a GPU holds at once walk over all rows, and fetch the next row before
// they wait for the one at hand: memory is never idle while sums are exchanged.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cuda/gpu.cuh"
#include "common/cuda/lanes.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"

namespace mamba {
namespace norm {

constexpr int kWarp = 32, kMostWarps = 16;  // of a row
constexpr int kFewestThreads = 128;         // of a block, which has several rows of a warp each
constexpr int kMostVectors = 4;             // of a thread
constexpr int kMostThreads = kMostWarps * kWarp;

// Numbers as they lie in memory, in whole registers: halves of registers that are zeroed, or loaded
// if they exist, are put together as soon as they arrive, and nothing is fetched ahead then.
template <int Bytes>
struct alignas(Bytes) Words {
  uint32_t words[Bytes / 4];
};

template <typename T, int Count>
__device__ __forceinline__ void widen(const Words<sizeof(T) * Count>& from, float (&to)[Count]) {
  const auto& numbers = reinterpret_cast<const Pack<T, Count>&>(from);
#pragma unroll
  for (int i = 0; i < Count; ++i) to[i] = to_float(numbers.values[i]);
}

// The sum over the threads of a row, to each of them. A row of more than a warp has the block for
// itself; sums are then those of another half at every other call.
__device__ __forceinline__ float sum_of_row(float part, float* sums) {
  part = warp_sum(part);
  if (blockDim.x == kWarp) return part;
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = part;
  __syncthreads();
  const unsigned warp = threadIdx.x % kMostWarps;
  part = warp < blockDim.x / kWarp ? sums[warp] : 0.f;
#pragma unroll
  for (int apart = kMostWarps / 2; apart > 0; apart /= 2) {
    part += __shfl_xor_sync(~0u, part, apart);
  }
  return part;
}

// Rows says what is normalised:
//   kWidth                 numbers that a thread moves at a time
//   Vector                 Words of them
//   Place                  where a row lies
//   width, epsilon         of a row
//   place(row)             a Place
//   fetch(place, i)        the Vector from number i on
//   values(vector, value)  what is squared and scaled
//   weight(place, i)       pointer to weights, aligned to kWidth of them, at most 16 bytes
//   kOneWeight             all rows have the same weights: a thread keeps its own in registers
//   reads_early            these may be read while earlier kernels run: no row prefetches them
//   store(place, i, vector, normed)
// blockDim is (threads of a row, rows).
template <typename Rows, int Vectors>
__global__ void __launch_bounds__(kMostThreads)
    norm_rows(const __grid_constant__ Rows s, unsigned rows) {
  constexpr int kW = Rows::kWidth;
  using Vector = typename Rows::Vector;
  __shared__ float sums[2][kMostWarps];
  let_next_kernel_start();
  const unsigned stride = gridDim.x * blockDim.y;
  unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
  const auto column = [](int v) { return static_cast<int>(v * blockDim.x + threadIdx.x) * kW; };
  const auto fetch = [&](const typename Rows::Place& place, Vector* vectors) {
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
      vectors[v] = {};
      if (column(v) < s.width) vectors[v] = s.fetch(place, column(v));
    }
  };
  float4 kept[Vectors][kW / 4];  // weights, where all rows have the same
  const auto load_weights = [&] {
    const typename Rows::Place place = s.place(0);
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
#pragma unroll
      for (int four = 0; four < kW && column(v) < s.width; four += 4) {
        kept[v][four / 4] = *reinterpret_cast<const float4*>(s.weight(place, column(v) + four));
      }
    }
  };
  const float per_number = 1.f / static_cast<float>(s.width);
  // Whatever came between has pushed the weights out of the caches: they are on their way early.
  if (Rows::kOneWeight && s.reads_early) {
    load_weights();
  } else if (row < rows) {
    const typename Rows::Place place = s.place(row);
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
      if (column(v) < s.width) prefetch(s.weight(place, column(v)));
    }
  }
  wait_for_earlier_kernels();
  if (row >= rows) return;  // all threads of the row, and of the block if it has no other
  if (Rows::kOneWeight && !s.reads_early) load_weights();

  typename Rows::Place next_place = s.place(row);
  Vector next[Vectors];
  fetch(next_place, next);
  for (int turn = 0;; turn ^= 1) {
    const typename Rows::Place place = next_place;
    const bool is_last = rows - row <= stride;
    Vector vectors[Vectors];
#pragma unroll
    for (int v = 0; v < Vectors; ++v) vectors[v] = next[v];
    if (!is_last) {
      row += stride;
      next_place = s.place(row);
      fetch(next_place, next);
    }
    float value[Vectors][kW], square = 0.f;
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
      s.values(vectors[v], value[v]);
#pragma unroll
      for (int j = 0; j < kW; ++j) square = fmaf(value[v][j], value[v][j], square);
    }
    const float mean = sum_of_row(square, sums[turn]) * per_number;
    const float scale = rsqrtf(mean + s.epsilon);  // to 2 ulp
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
      const int i = column(v);
      if (i >= s.width) continue;
      float normed[kW];
#pragma unroll
      for (int four = 0; four < kW; four += 4) {
        const float4 w = Rows::kOneWeight
                             ? kept[v][four / 4]
                             : *reinterpret_cast<const float4*>(s.weight(place, i + four));
        const float weights[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) normed[four + j] = value[v][four + j] * scale * weights[j];
      }
      s.store(place, i, vectors[v], normed);
    }
    if (is_last) return;
  }
}

// Threads of a row whose threads take `width` numbers each, and rows of a block.
inline dim3 block_for(int64_t row_width, int64_t width) {
  const int64_t warps = (row_width + width * kWarp - 1) / (width * kWarp);
  const auto threads = static_cast<unsigned>(std::min<int64_t>(warps, kMostWarps) * kWarp);
  return dim3(threads, threads == kWarp ? kFewestThreads / kWarp : 1);
}

// The widest row that norm_rows takes, of vectors of `width` numbers.
constexpr int64_t widest_row(int width) { return int64_t{width} * kMostVectors * kMostThreads; }

template <typename Rows>
cudaError_t launch_norm_rows(const Rows& s, int64_t rows, cudaStream_t stream) {
  // What is done once a row and thread, such as finding the row and adding up the warps' sums,
  // costs as much as a dozen numbers do: a row of many numbers gives its threads more of them.
  const int64_t vectors_of_row = (s.width + Rows::kWidth - 1) / Rows::kWidth;
  const int vectors = vectors_of_row <= kFewestThreads       ? 1
                      : vectors_of_row <= 2 * kFewestThreads ? 2
                                                             : kMostVectors;
  const auto kernel = vectors == 1   ? norm_rows<Rows, 1>
                      : vectors == 2 ? norm_rows<Rows, 2>
                                     : norm_rows<Rows, kMostVectors>;
  const dim3 block = block_for(s.width, int64_t{Rows::kWidth} * vectors);
  int64_t blocks = (rows - 1) / block.y + 1;
  if (rows > INT32_MAX) return cudaErrorInvalidConfiguration;
  int at_once = 0;  // blocks of a multiprocessor
  const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &at_once, kernel, static_cast<int>(block.x * block.y), 0);
  if (error != cudaSuccess) return error;
  blocks = std::min<int64_t>(blocks, int64_t{std::max(at_once, 1)} * current_gpu().multiprocessors);
  return launch_overlapping(kernel, dim3(static_cast<unsigned>(blocks)), block, 0, stream,
                            current_gpu().major >= 9, s, static_cast<unsigned>(rows));
}

}  // namespace norm
}  // namespace mamba
