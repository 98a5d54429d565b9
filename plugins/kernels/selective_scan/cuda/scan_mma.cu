// Scan of 16-bit numbers with 8 or 16 states, on tensor cores of sm_80 and later: the roles and the
// hand-overs of scan_pipe.cu, with consumer warps that read little of shared memory, whose reads
// rival the exponentials there (scan_pairs.cuh has how).
//
// The least time is that of the special functions, of which a multiprocessor does 16 a cycle: 16
// exponentials a channel and step, and 4 functions in the other roles. A warp's instruction of them
// takes its scheduler's unit 8 cycles, in which 8 instructions can be issued. Counted in the
// machine code, a consumer warp has 5.4 a state and step for bf16 and 7.1 for fp16 (at least 4: two
// products, the exponential, the recurrence), the other roles 41 a channel and step: of the 160 a
// channel and step that the special functions leave room for, 127 and 154.
#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "common/cuda/overlap.cuh"
#include "selective_scan/cuda/scan_eights.cuh"
#include "selective_scan/cuda/scan_pairs.cuh"

namespace mamba {
namespace {

// What follows from the tile's constants (tuning.cuh).
template <typename Constants>
struct MmaShape : Constants {
  using Constants::kAllStates, Constants::kSteps, Constants::kWidth, Constants::kRoleThreads;
  static constexpr int kConsumers = kWidth / kRows * 32;
  static constexpr int kThreads = kConsumers + 2 * kRoleThreads;
  // Eights of channels, or of states, that a thread of the other roles has of a tile, at most.
  static constexpr int kItems = (kWidth / kEight * kSteps + kRoleThreads - 1) / kRoleThreads;
  static constexpr int kStateItems = (2 * kSteps + kRoleThreads - 1) / kRoleThreads;
  static_assert(kAllStates == kMmaStates && kWidth % kRows == 0 && kSteps % kGroup == 0);

  // Rows are padded so that those of neighbouring steps begin in other banks.
  struct alignas(16) Tile {
    float2 dt_du[kSteps][kWidth + 4];
    float B[kSteps][kAllStates + 8], C[kSteps][kAllStates + 8];
    float y[kSteps][kWidth + 4];
    int not_finite;  // the last tile here that had such numbers, counted from 1
  };
};

template <typename T, typename S>
__device__ __forceinline__ void consume(const mamba_selective_scan_params& p, int64_t batch,
                                        int64_t first, int tile_count, int column,
                                        typename S::Tile* tiles) {
  constexpr bool kKeepsRest = !std::is_same_v<T, __nv_bfloat16>;
  constexpr int kHandOver = S::kConsumers + S::kRoleThreads;
  const int lane = threadIdx.x % 32;
  const int r = lane / 4, q = lane % 4;
  const int64_t channel = first + column + r;
  const auto place = [&](int n, int j) { return n * 8 + q * 2 + j; };
  float A[kStateBlocks][2], h[kStateBlocks][2];
#pragma unroll
  for (int n = 0; n < kStateBlocks; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const bool exists = channel < p.d_inner && place(n, j) < p.d_state;
      A[n][j] = exists ? p.A[channel * p.d_state + place(n, j)] * kLog2e : 0.f;
      h[n][j] = exists && p.initial_state
                    ? p.initial_state[(batch * p.d_inner + channel) * p.d_state + place(n, j)]
                    : 0.f;
    }
  }
  // While a group of steps is walked, the next one is read.
  constexpr int kGroups = S::kSteps / kGroup;
  Group<kKeepsRest> group, next_group;
  wait(kFilled, kHandOver);
  load<S>(tiles[0], 0, column, lane, group);
  int stage = 0;
  for (int tile_index = 0; tile_index < tile_count; ++tile_index) {
    const int next_stage = stage + 1 < kStages ? stage + 1 : 0;
    auto& tile = tiles[stage];
    if (tile_index >= kStages) wait(kStored + stage, kHandOver);
    if (tile_index + 1 < tile_count) wait(kFilled + next_stage, kHandOver);
    if (tile.not_finite == tile_index + 1) {
      walk_plainly<S>(tile, A, column, lane, h);
      load<S>(tiles[next_stage], 0, column, lane, group);
    } else {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const bool is_here = g + 1 < kGroups;
        load<S>(is_here ? tile : tiles[next_stage], (g + 1) % kGroups, column, lane, next_group);
        float y[2] = {};
        walk_group(group, A, lane, h, y);
        group = next_group;
        tile.y[g * kGroup + q * 2][column + r] = y[0];
        tile.y[g * kGroup + q * 2 + 1][column + r] = y[1];
      }
    }
    arrive(kSummed + stage, kHandOver);
    // Nobody waits for the last tiles to be read.
    if (tile_index + kStages < tile_count) arrive(kFree + stage, kHandOver);
    stage = next_stage;
  }
#pragma unroll
  for (int n = 0; n < kStateBlocks; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (channel >= p.d_inner || place(n, j) >= p.d_state) continue;
      p.last_state[(batch * p.d_inner + channel) * p.d_state + place(n, j)] = h[n][j];
    }
  }
}

template <typename T, typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    scan_mma_kernel(const __grid_constant__ mamba_selective_scan_params p) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* tiles = reinterpret_cast<typename S::Tile*>(memory);
  const unsigned blocks = static_cast<unsigned>((p.d_inner + S::kWidth - 1) / S::kWidth);
  const int64_t batch = blockIdx.x / blocks, first = int64_t{blockIdx.x % blocks} * S::kWidth;
  const int tile_count = static_cast<int>((p.length + S::kSteps - 1) / S::kSteps);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kStages) tiles[thread].not_finite = 0;
  __syncthreads();
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const int rank = thread - S::kConsumers;  // among the other roles' threads
  if (rank < 0) {
    consume<T, S>(p, batch, first, tile_count, thread / 32 * kRows, tiles);
  } else if (rank < S::kRoleThreads) {
    produce<T, S>(p, batch, first, tile_count, rank, tiles);
  } else {
    epilogue<T, S>(p, batch, first, tile_count, rank - S::kRoleThreads, tiles);
  }
}

// Channels of a block, were every multiprocessor to have one.
int64_t even_width(const mamba_selective_scan_params& p) {
  const int64_t blocks = std::max<int64_t>(1, current_gpu().multiprocessors / p.batch);
  return (p.d_inner + blocks - 1) / blocks;
}

template <typename Body>
auto with_shape(const mamba_selective_scan_params& p, Body body) {
  if (even_width(p) <= MmaSome::kWidth) return body(MmaShape<MmaSome>{});
  return body(MmaShape<MmaMany>{});
}

template <typename T, typename S>
cudaError_t launch(const mamba_selective_scan_params& p, cudaStream_t stream) {
  const auto kernel = scan_mma_kernel<T, S>;
  // Blocks that start while another kernel runs would pile up on the multiprocessors that it leaves
  // free, so that each asks for more than half of the shared memory of one.
  const bool overlaps = S::kBlocks == 1 && current_gpu().major >= 9;
  const int half = current_gpu().shared_bytes / 2 + 1024;
  const int bytes = std::max<int>(kStages * sizeof(typename S::Tile), overlaps ? half : 0);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t blocks = (p.d_inner + S::kWidth - 1) / S::kWidth * p.batch;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch_overlapping(kernel, dim3(static_cast<unsigned>(blocks)), dim3(S::kThreads), bytes,
                            stream, overlaps, p);
}

}  // namespace

bool mma_fits(const mamba_selective_scan_params& p) {
  if (p.dtype == MAMBA_FP32 || p.n_groups != 1 || p.d_state > kMmaStates || p.d_state % kEight ||
      p.d_inner % kEight || current_gpu().major < 8) {
    return false;
  }
  const int64_t width = even_width(p);
  if (width <= kFewestMmaChannels || (width > MmaSome::kWidth && width <= MoreChannels::kWidth)) {
    return false;
  }
  const size_t bytes =
      with_shape(p, [](auto shape) { return kStages * sizeof(typename decltype(shape)::Tile); });
  if (current_gpu().shared_bytes < static_cast<int>(bytes)) return false;
  const auto fits = [](const mamba_sequence& s) { return rows_aligned<16>(s, 2); };
  return fits(p.u) && fits(p.delta) && fits(p.B) && fits(p.C) && (!p.z.data || fits(p.z)) &&
         p.length < INT32_MAX && is_aligned<16>(p.y, 0, 1);
}

cudaError_t launch_scan_mma(const mamba_selective_scan_params& p, cudaStream_t stream) {
  return with_shape(p, [&](auto shape) {
    using S = decltype(shape);
    if (p.dtype == MAMBA_FP16) return launch<__half, S>(p, stream);
    return launch<__nv_bfloat16, S>(p, stream);
  });
}

}  // namespace mamba
