// y = x W for up to 64 rows of x, W (depth, columns) row-major, 16 bits: reading W once is nearly
// all of the time, so every block asks for its whole part of W at once, while the kernel ahead
// still runs.
//
// A block owns kColumns columns and a share of the depth; the blocks of a cluster share out the
// depth, and add up their sums in one another's shared memory, in a fixed order. In a block, warps
// share out steps of 16 rows of W, and of more than 32 rows of x half of them each. W is the left
// factor, transposed: of every product (16 columns of W) x (8 rows of x), the tensor cores' own
// shape. x goes straight to registers.
//
// The 16 rows of W of a step are taken in such an order that a lane's numbers of x lie side by
// side: number 2 j + i of the tensor cores' first eight is row 4 j + i, of the other eight row
// 4 j + 2 + i.
#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "common/cuda/mma.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/skinny_product.cuh"

namespace mamba {
namespace {

constexpr int kColumns = 64;  // of a block: 128 bytes of a row of W
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kStep = 16;                        // rows of W that a warp multiplies at a time
constexpr int kVector = 8;                       // numbers of 16 bytes
constexpr int kRowVectors = kColumns / kVector;  // of a row of W
constexpr int kSumStride = kColumns + 4;         // of a row of sums: rows start in other banks
constexpr int kMaxShares = 8;                    // of the depth: blocks of a cluster

struct SkinnyProduct {
  mamba_product p;
  int share;  // of the depth, a multiple of kStep
  bool reads_early;
};

// RowTiles: eight rows of x each.
template <int RowTiles>
struct Layout {
  static constexpr int kRows = RowTiles * 8;
  static constexpr int kHalves = RowTiles > 4 ? 2 : 1;      // of the rows, for warps of their own
  static constexpr int kTiles = RowTiles / kHalves;         // of a warp
  static constexpr int kWays = kWarps / kHalves;            // warps that share out the steps
  static constexpr int kAhead = std::max(2, 8 / kTiles);    // steps whose x is on its way
  static constexpr int kSums = kWays * kRows * kSumStride;  // numbers of fp32

  static constexpr size_t shared_bytes(int share) {
    return std::max(size_t{2} * share * kColumns, sizeof(float) * kSums);
  }
};

// Where a block keeps 16 bytes of a row of its part of W: in such an order that the eight rows that
// are read together lie in different banks.
__device__ __forceinline__ int place(int row, int vector) {
  const int turn = (row / 4 % 4) * 2 + row % 2;
  return row * kColumns + (vector ^ turn) * kVector;
}

__device__ __forceinline__ void cluster_barrier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// A number in the shared memory of another block of the cluster, at the same place as `own`.
__device__ __forceinline__ float load_from_block(const float* own, int block) {
  float value = 0.f;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 place;\nmapa.shared::cluster.u32 place, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [place];\n}"
      : "=f"(value)
      : "r"(shared_address(own)), "r"(block)
      : "memory");
#endif
  return value;
}

template <typename T, int RowTiles>
__global__ void __launch_bounds__(kThreads, 2)
    skinny_product(const __grid_constant__ SkinnyProduct s) {
  using L = Layout<RowTiles>;
  constexpr int kRows = L::kRows, kTiles = L::kTiles, kWays = L::kWays, kAhead = L::kAhead;
  extern __shared__ __align__(128) unsigned char shared[];
  T* stage = reinterpret_cast<T*>(shared);         // (share, kColumns), see place
  float* sums = reinterpret_cast<float*>(shared);  // (kWays, kRows, kSumStride), afterwards
  let_next_kernel_start();

  const int rows = static_cast<int>(s.p.rows), columns = static_cast<int>(s.p.columns);
  const int depth = static_cast<int>(s.p.depth);
  const int first_column = blockIdx.x * kColumns;
  const int first = blockIdx.y * s.share, count = min(s.share, depth - first);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int way = warp % kWays, half = warp / kWays;

  const auto load_weights = [&] {
    const int vector = threadIdx.x % kRowVectors, column = first_column + vector * kVector;
    constexpr int kApart = kThreads / kRowVectors;
    const bool exists = column < columns;
    const T* weights = static_cast<const T*>(s.p.b);
    for (int row = threadIdx.x / kRowVectors; row < count; row += kApart) {
      const int64_t at = static_cast<int64_t>(first + row) * columns + column;
      copy_async(stage + place(row, vector), exists ? weights + at : weights, exists);
    }
  };
  if (s.reads_early) load_weights();
  wait_for_earlier_kernels();
  if (!s.reads_early) load_weights();

  // A lane's x: of the row lane / 4 of each tile the numbers lane % 4 * 4 to + 3 of a step. Rows
  // that do not exist are the last one again: nobody reads their sums.
  const T* x[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const int row = min((half * kTiles + t) * 8 + lane / 4, rows - 1);
    x[t] = static_cast<const T*>(s.p.a) + row * s.p.a_stride + first + lane % 4 * 4;
  }
  const int steps = count / kStep;
  uint2 right[kAhead][kTiles];
  const auto load_x = [&](int i, uint2(&to)[kTiles]) {
    if (i >= steps) return;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) to[t] = *reinterpret_cast<const uint2*>(x[t] + i * kStep);
  };
#pragma unroll
  for (int j = 0; j < kAhead; ++j) load_x(way + j * kWays, right[j]);
  wait_for_copies();
  __syncthreads();

  float sum[kTiles][kColumns / 16][4] = {};
  // The lane's row of the tile of 8 by 8 that it gives the address of.
  const int tile_row = lane % 8 / 2 * 4 + lane % 2 + lane / 16 * 2;
  for (int base = way; base < steps; base += kWays * kAhead) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = base + j * kWays;
      if (i >= steps) break;
#pragma unroll
      for (int c = 0; c < kColumns / 16; ++c) {
        uint32_t left[4];
        load_tiles_transposed(stage + place(i * kStep + tile_row, c * 2 + lane / 8 % 2), left);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          multiply_add<T>(sum[t][c], left, right[j][t].x, right[j][t].y);
        }
      }
      load_x(i + kWays * kAhead, right[j]);
    }
  }

  // The warps' sums, then the block's in those of the first warps.
  __syncthreads();
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int c = 0; c < kColumns / 16; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = (half * kTiles + t) * 8 + lane % 4 * 2 + i % 2;
        const int column = c * 16 + lane / 4 + i / 2 * 8;
        sums[(way * kRows + row) * kSumStride + column] = sum[t][c][i];
      }
    }
  }
  __syncthreads();
  const int numbers = rows * kColumns;
  for (int i = threadIdx.x; i < numbers; i += kThreads) {
    float* own = sums + i / kColumns * kSumStride + i % kColumns;
    float total = own[0];
#pragma unroll
    for (int other = 1; other < kWays; ++other) total += own[other * kRows * kSumStride];
    own[0] = total;
  }

  // The cluster's: a share of the numbers for each block.
  const int blocks = gridDim.y, block = blockIdx.y;
  if (blocks > 1) {
    cluster_barrier();
  } else {
    __syncthreads();
  }
  const int own_numbers = (numbers + blocks - 1) / blocks;
  const int end = min(numbers, (block + 1) * own_numbers);
  for (int i = block * own_numbers + threadIdx.x; i < end; i += kThreads) {
    const int row = i / kColumns, column = first_column + i % kColumns;
    const float* own = sums + row * kSumStride + i % kColumns;
    float total = 0.f;
    if (blocks == 1) {
      total = *own;
    } else {
      for (int other = 0; other < blocks; ++other) total += load_from_block(own, other);
    }
    if (column >= columns) continue;
    const int64_t at = row * s.p.c_stride + column;
    if (s.p.c_dtype == MAMBA_FP32) {
      if (s.p.addend) total += static_cast<const float*>(s.p.addend)[at];
      static_cast<float*>(s.p.c)[at] = total;
    } else {
      if (s.p.addend) total += to_float(static_cast<const T*>(s.p.addend)[at]);
      static_cast<T*>(s.p.c)[at] = from_float<T>(total);
    }
  }
  if (blocks > 1) cluster_barrier();  // the others may still be reading this block's sums
}

// Into how many shares the depth is cut: enough blocks for the GPU, and shares that fit.
int count_shares(const mamba_product& p) {
  const int64_t tiles = (p.columns + kColumns - 1) / kColumns;
  int shares = 1;
  while (shares < kMaxShares &&
         (p.depth > int64_t{shares} * kMostSkinnyShare ||
          (tiles * shares < kSkinnyBlocks && p.depth > int64_t{2 * shares} * kLeastSkinnyShare))) {
    shares *= 2;
  }
  return shares;
}

int share_of(const mamba_product& p) {
  const int64_t steps = p.depth / kStep, shares = count_shares(p);
  return static_cast<int>((steps + shares - 1) / shares) * kStep;
}

template <typename T, int RowTiles>
cudaError_t launch(const SkinnyProduct& s, cudaStream_t stream) {
  const auto kernel = skinny_product<T, RowTiles>;
  const size_t shared = Layout<RowTiles>::shared_bytes(s.share);
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(shared))) {
    return error;
  }
  // Rounding the shares up may leave the last ones without a step, which costs nothing.
  const unsigned shares = static_cast<unsigned>(count_shares(s.p));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = 1;
  attributes[1].val.clusterDim.y = shares;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((s.p.columns + kColumns - 1) / kColumns), shares);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, s);
}

template <typename T>
cudaError_t launch(const SkinnyProduct& s, cudaStream_t stream) {
  if (s.p.rows <= 8) return launch<T, 1>(s, stream);
  if (s.p.rows <= 16) return launch<T, 2>(s, stream);
  if (s.p.rows <= 32) return launch<T, 4>(s, stream);
  return launch<T, 8>(s, stream);
}

}  // namespace

bool skinny_product_fits(const mamba_product& p) {
  constexpr int kBytes = 2;  // of a number
  if (p.dtype == MAMBA_FP32 || p.rows > current_tuning().most_skinny_rows ||
      p.rows > kMaxSkinnyRows || p.depth % kStep != 0 || p.columns % kVector != 0 ||
      p.depth > int64_t{kMaxShares} * kMostSkinnyShare || p.columns > INT32_MAX / 2 ||
      !is_aligned<16>(p.b, 0, kBytes) || !is_aligned<8>(p.a, p.a_stride, kBytes)) {
    return false;
  }
  const size_t shared = Layout<kMaxSkinnyRows / 8>::shared_bytes(share_of(p));
  return shared <= static_cast<size_t>(current_gpu().shared_bytes);
}

cudaError_t launch_skinny_product(const mamba_product& p, bool reads_early, cudaStream_t stream) {
  const SkinnyProduct s = {p, share_of(p), reads_early};
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (kIsWide<T>) {
      return cudaErrorNotSupported;
    } else {
      return launch<T>(s, stream);
    }
  });
}

}  // namespace mamba
