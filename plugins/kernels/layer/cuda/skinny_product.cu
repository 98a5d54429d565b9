// y = x W for up to 32 rows of x, W (depth, columns) row-major, 16 bits: reading W once is nearly
// all of the time, so every block asks for its whole part of W at once, while the kernel ahead
// still runs.
//
// A block owns kColumns columns and a share of the depth; the blocks of a cluster share out the
// depth, and add up their sums in one another's shared memory, in a fixed order. In a block, warps
// share out steps of 16 rows of W, each of which is a group of copies that no other warp waits for.
// W is the left factor, transposed: of every product (16 columns of W) x (8 rows of x), the tensor
// cores' own shape. x goes straight to registers.
//
// The 16 rows of W of a step are taken in such an order that a lane's numbers of x lie side by
// side: number 2 j + i of the tensor cores' first eight is row 4 j + i, of the other eight row
// 4 j + 2 + i.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "common/checks.h"
#include "common/cuda/gpu.cuh"
#include "common/cuda/mma.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/one_step_conv.cuh"
#include "layer/cuda/product_sums.cuh"
#include "layer/cuda/skinny_product.cuh"

namespace mamba {
namespace {

constexpr int kColumns = 64;  // of a block: 128 bytes of a row of W
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kStep = 16;                        // rows of W that a warp multiplies at a time
constexpr int kVector = 8;                       // numbers of 16 bytes
constexpr int kRowVectors = kColumns / kVector;  // of a row of W
constexpr int kSumStride = kColumns + 4;         // of a row of sums: rows start in other banks
constexpr int kMostSteps = kMostSkinnyShare / kStep / kWarps;  // of a warp

struct SkinnyProduct {
  mamba_product p;
  int share;  // of the depth, a multiple of kStep
  bool reads_early;
  OneStepConv conv;
};

// RowTiles: eight rows of x each.
template <int RowTiles>
struct Layout {
  static constexpr int kRows = RowTiles * 8;
  static constexpr int kAhead = std::min(kMostSteps, 16 / RowTiles);  // steps whose x is on its way
  static constexpr int kSums = kWarps * kRows * kSumStride;           // numbers of fp32

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

template <typename Body, int... Turns>
__device__ __forceinline__ void take_steps(const Body& body, std::integer_sequence<int, Turns...>) {
  (body(std::integral_constant<int, Turns>()), ...);
}

// Blocks: that are to share a multiprocessor, which bounds registers.
template <typename T, int RowTiles, int Blocks>
__global__ void __launch_bounds__(kThreads, Blocks)
    skinny_product(const __grid_constant__ SkinnyProduct s) {
  using L = Layout<RowTiles>;
  constexpr int kRows = L::kRows, kAhead = L::kAhead;
  extern __shared__ __align__(128) unsigned char shared[];
  T* stage = reinterpret_cast<T*>(shared);         // (share, kColumns), see place
  float* sums = reinterpret_cast<float*>(shared);  // (kWarps, kRows, kSumStride), afterwards
  let_next_kernel_start();

  const int rows = static_cast<int>(s.p.rows), columns = static_cast<int>(s.p.columns);
  const int depth = static_cast<int>(s.p.depth);
  const int first_column = blockIdx.x * kColumns;
  const int first = blockIdx.y * s.share, steps = min(s.share, depth - first) / kStep;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  // The warp's steps, a group of copies each; those beyond the last are empty.
  const auto load_weights = [&] {
    const int vector = lane % kRowVectors, column = first_column + vector * kVector;
    constexpr int kApart = 32 / kRowVectors;
    const bool exists = column < columns;
    const T* weights = static_cast<const T*>(s.p.b);
#pragma unroll
    for (int t = 0; t < kMostSteps; ++t) {
      const int step = t * kWarps + warp;
      if (step < steps) {
#pragma unroll
        for (int i = 0; i < kStep; i += kApart) {
          const int row = step * kStep + i + lane / kRowVectors;
          const int64_t at = static_cast<int64_t>(first + row) * columns + column;
          copy_async(stage + place(row, vector), exists ? weights + at : weights, exists);
        }
      }
      commit_copies();
    }
  };
  if (s.reads_early) load_weights();
  const int first_channel = first_column - s.conv.first;
  const bool has_channels =
      s.conv.y && first_channel + kColumns > 0 && first_channel < s.conv.columns;
  if (has_channels && blockIdx.y == 0)
    prefetch_states<T, kColumns, kThreads>(s.conv, rows, first_channel);
  wait_for_earlier_kernels();
  if (!s.reads_early) load_weights();

  // A lane's x: of the row lane / 4 of each tile the numbers lane % 4 * 4 to + 3 of a step. Rows
  // that do not exist are the last one again: nobody reads their sums.
  const T* x[RowTiles];
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
    const int row = min(r * 8 + lane / 4, rows - 1);
    x[r] = static_cast<const T*>(s.p.a) + row * s.p.a_stride + first + lane % 4 * 4;
  }
  uint2 right[kAhead][RowTiles];
  const auto load_x = [&](int step, uint2(&to)[RowTiles]) {
    if (step >= steps) return;
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
      to[r] = *reinterpret_cast<const uint2*>(x[r] + step * kStep);
    }
  };
#pragma unroll
  for (int t = 0; t < kAhead; ++t) load_x(t * kWarps + warp, right[t]);

  float sum[RowTiles][kColumns / 16][4] = {};
  // The lane's row of the tile of 8 by 8 that it gives the address of.
  const int tile_row = lane % 8 / 2 * 4 + lane % 2 + lane / 16 * 2;
  const uint32_t stage_address = shared_address(stage);
  const auto multiply = [&](int step, const uint2(&values)[RowTiles]) {
#pragma unroll
    for (int c = 0; c < kColumns / 16; ++c) {
      uint32_t left[4];
      load_tiles_transposed(
          stage_address + 2 * place(step * kStep + tile_row, c * 2 + lane / 8 % 2), left);
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) {
        multiply_add<T>(sum[r][c], left, values[r].x, values[r].y);
      }
    }
  };
  const auto take_step = [&](auto turn) {
    constexpr int t = decltype(turn)::value;
    const int step = t * kWarps + warp;
    wait_for_copies_but<kMostSteps - 1 - t>();
    __syncwarp();  // the other lanes' copies too
    if (step >= steps) return;
    multiply(step, right[t % kAhead]);
    load_x(step + kAhead * kWarps, right[t % kAhead]);
  };
  take_steps(take_step, std::make_integer_sequence<int, kMostSteps>());

  // The warps' sums, then the block's in those of the first warp.
  __syncthreads();
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns / 16; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = r * 8 + lane % 4 * 2 + i % 2, column = c * 16 + lane / 4 + i / 2 * 8;
        sums[(warp * kRows + row) * kSumStride + column] = sum[r][c][i];
      }
    }
  }
  __syncthreads();
  constexpr int kRowFours = kColumns / kFour;
  const int fours = rows * kRowFours;
  const auto four_at = [&](int i) { return sums + i / kRowFours * kSumStride + i % kRowFours * 4; };
  for (int i = threadIdx.x; i < fours; i += kThreads) {
    float4* own = reinterpret_cast<float4*>(four_at(i));
    float4 total = *own;
#pragma unroll
    for (int other = 1; other < kWarps; ++other) {
      add(total, *(own + other * kRows * kSumStride / kFour));
    }
    *own = total;
  }

  // The cluster's: a share of the numbers for each block.
  const int blocks = gridDim.y, block = blockIdx.y;
  if (blocks > 1) {
    cluster_barrier();
  } else {
    __syncthreads();
  }
  const int own_fours = (fours + blocks - 1) / blocks;
  const int end = min(fours, (block + 1) * own_fours);
  for (int i = block * own_fours + threadIdx.x; i < end; i += kThreads) {
    const int row = i / kRowFours, place = i % kRowFours * kFour, column = first_column + place;
    const float4 total = sum_over_blocks(four_at(i), blocks);
    if (column >= columns) continue;
    const float values[kFour] = {total.x, total.y, total.z, total.w};
    bool is_product = false;  // whether any of the columns is no channel of the convolution
#pragma unroll
    for (int j = 0; j < kFour; ++j) {
      const int channel = first_channel + place + j;
      if (has_channels && channel >= 0 && channel < s.conv.columns) {
        convolve(s.conv, row, channel, from_float<T>(values[j]));
      } else {
        is_product = true;
      }
    }
    if (!is_product) continue;
    write_product<T>(s.p, row * s.p.c_stride + column, total);
  }
  if (blocks > 1) cluster_barrier();  // the others may still be reading this block's sums
}

// Into how many shares the depth is cut: enough blocks for the GPU, and shares that fit.
int count_shares(const mamba_product& p) {
  const int64_t tiles = (p.columns + kColumns - 1) / kColumns;
  int shares = 1;
  while (shares < kMostShares &&
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

template <typename T, int RowTiles, int Blocks = 2>
cudaError_t launch(const SkinnyProduct& s, cudaStream_t stream) {
  // Rounding the shares up may leave the last ones without a step, which costs nothing.
  const unsigned shares = static_cast<unsigned>(count_shares(s.p));
  const dim3 grid(static_cast<unsigned>((s.p.columns + kColumns - 1) / kColumns), shares);
  return launch_overlapping_clusters(skinny_product<T, RowTiles, Blocks>, grid, dim3(1, shares),
                                     dim3(kThreads), Layout<RowTiles>::shared_bytes(s.share),
                                     stream, s);
}

template <typename T>
cudaError_t launch(const SkinnyProduct& s, cudaStream_t stream) {
  const bool is_large = s.p.depth * s.p.columns >= kLargeSkinnyWeight;
  if (s.p.rows <= 8) return is_large ? launch<T, 1, 3>(s, stream) : launch<T, 1>(s, stream);
  if (s.p.rows <= 16) return launch<T, 2>(s, stream);
  return launch<T, 4>(s, stream);
}

}  // namespace

bool skinny_product_fits(const mamba_product& p) {
  constexpr int kBytes = 2;  // of a number
  if (p.dtype == MAMBA_FP32 || p.rows > current_tuning().most_skinny_rows ||
      p.rows > kMaxSkinnyRows || p.depth > kMaxWidth || p.columns > kMaxWidth ||
      p.rows * p.depth * p.columns > current_tuning().most_skinny_products ||
      p.depth * p.columns > current_tuning().most_skinny_weights || p.depth % kStep != 0 ||
      p.columns % kVector != 0 || p.depth > int64_t{kMostShares} * kMostSkinnyShare ||
      !is_aligned<16>(p.b, 0, kBytes) || !is_aligned<8>(p.a, p.a_stride, kBytes) ||
      !is_aligned<16>(p.c, p.c_stride, kBytes) || !is_aligned<16>(p.addend, 0, kBytes)) {
    return false;
  }
  const size_t shared = Layout<kMaxSkinnyRows / 8>::shared_bytes(share_of(p));
  return shared <= static_cast<size_t>(current_gpu().shared_bytes);
}

bool skinny_convolution_fits(const mamba_causal_conv1d_params& c) {
  return c.length == 1 && c.d_conv == kStepTaps && is_aligned<16>(c.weight, 0, 1);
}

cudaError_t launch_skinny_product(const mamba_product& p, bool reads_early,
                                  const mamba_causal_conv1d_params* conv, cudaStream_t stream) {
  SkinnyProduct s = {p, share_of(p), reads_early, {}};
  if (conv) {
    const auto bytes = static_cast<const char*>(conv->x.data) - static_cast<const char*>(p.c);
    s.conv = {conv->weight,
              conv->bias,
              conv->initial_state,
              conv->y,
              conv->last_state,
              static_cast<int>(bytes / 2),
              static_cast<int>(conv->channels),
              conv->silu != 0};
  }
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
