// Scan for d_state up to 128, warp-specialised: consumer warps do nothing but the recurrence, and
// two other kinds of warps all the rest, ahead of them and behind, so that a step costs a consumer
// warp as few instructions and as little waiting as can be. They hand tiles of some steps to each
// other in three stages of shared memory:
//
//   producer warps  dt, dt u, B and C in fp32; the numbers of T for the next tile are under way
//   consumer warps  the recurrence, and the sums over the states
//   epilogue warps  skip, gate and store
//
// A consumer thread keeps some states of one or two channels. Its loop is pipelined by hand in
// groups of 4 steps, for the compiler moves no load over a store: while the recurrence walks a
// group, the next one is read, and with kAhead the exponentials of the one between are computed.
//
// Sums over the states of a channel are matrix products in tf32, which take one instruction where
// shuffles take six. Where four lanes have all states of a channel, for bf16 the matrices are h and
// C (C is exact in tf32, and what h loses is less than y loses when it is rounded); else they are
// the products C h and ones, and for the other types the part of them that tf32 drops is summed
// too. Channels of more than four lanes have a sum for every four; epilogue warps add those.
#include <algorithm>

#include "selective_scan/cuda/scan_pipe_consumer.cuh"
#include "selective_scan/cuda/scan_pipe_epilogue.cuh"
#include "selective_scan/cuda/scan_pipe_producer.cuh"

namespace mamba {
namespace {

using namespace pipe;

// width: channels of a block; its first threads, kLanes a channel or two, scan.
// kDepths: sixteens of the depth of dt_proj, where the scan does that too; else 0.
template <typename T, typename S, int kDepths>
__global__ void __launch_bounds__(S::kConsumers + 2 * S::kRoleThreads, S::kBlocks)
    scan_pipe_kernel(const __grid_constant__ mamba_selective_scan_params p,
                     const __grid_constant__ ScanDtProj proj, int width) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* tiles = reinterpret_cast<typename S::Tile*>(memory);
  const int consumers = width * S::kLanes / S::kChannels;
  const unsigned blocks = static_cast<unsigned>((p.d_inner + width - 1) / width);
  const int64_t batch = blockIdx.x / blocks, first = int64_t{blockIdx.x % blocks} * width;
  const int tile_count = static_cast<int>((p.length + S::kSteps - 1) / S::kSteps);
  const int rank = static_cast<int>(threadIdx.x) - consumers;  // among the other roles' threads
  if (rank < 0) {
    consume<T, S>(p, batch, first, tile_count, consumers, tiles);
  } else if (rank < S::kRoleThreads) {
    if constexpr (kDepths > 0) {
      produce_with_dt_proj<T, S, kDepths>(p, proj, batch, first, tile_count, consumers, width, rank,
                                          tiles);
    } else {
      produce<T, S>(p, batch, first, tile_count, consumers, width, rank, tiles);
    }
  } else {
    epilogue<T, S>(p, batch, first, tile_count, consumers, width, rank - S::kRoleThreads, tiles);
  }
}

// Runs body with the shape for p (an empty object, for its type) and a block's channels, which are
// not yet a multiple of anything.
template <typename Body>
auto with_shape(const mamba_selective_scan_params& p, Body body) {
  // So many channels a block that the blocks fill every multiprocessor once, or nearly.
  const int64_t blocks = std::max<int64_t>(1, current_gpu().multiprocessors / p.batch);
  const int64_t width = (p.d_inner + blocks - 1) / blocks;
  const auto with = [&](auto shape) {
    return body(shape, std::min<int64_t>(width, decltype(shape)::kWidth));
  };
  if (p.d_state > SomeStates::kAllStates) return with(PipeShape<ManyStates>{});
  if (p.d_state > ManyChannels::kAllStates) return with(PipeShape<SomeStates>{});
  if (width <= FewChannels::kWidth) return with(PipeShape<FewChannels>{});
  if (width <= SomeChannels::kWidth) return with(PipeShape<SomeChannels>{});
  if (width <= MoreChannels::kWidth) return with(PipeShape<MoreChannels>{});
  return with(PipeShape<ManyChannels>{});
}

template <typename T, typename S, int kDepths>
cudaError_t launch(const mamba_selective_scan_params& p, const ScanDtProj& proj, int64_t width,
                   cudaStream_t stream) {
  const auto kernel = scan_pipe_kernel<T, S, kDepths>;
  constexpr int kBytes = kStages * sizeof(typename S::Tile);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  constexpr int kMultiple = std::max(S::kMultiple, kQuad);
  width = (width + kMultiple - 1) / kMultiple * kMultiple;
  const int64_t blocks = (p.d_inner + width - 1) / width * p.batch;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const int threads = static_cast<int>(width) * S::kLanes / S::kChannels + 2 * S::kRoleThreads;
  // Not overlapping: blocks that start while another kernel runs pile up on the multiprocessors
  // that it leaves free, and 96 blocks on 36 of them take 77 us instead of 48 (1 x 1536 x 2048,
  // H200).
  kernel<<<static_cast<unsigned>(blocks), threads, kBytes, stream>>>(p, proj,
                                                                     static_cast<int>(width));
  return cudaGetLastError();
}

}  // namespace

bool pipe_fits(const mamba_selective_scan_params& p) {
  if (p.n_groups != 1 || p.d_state > kPipeStates || p.d_state % kQuad || p.d_inner % kQuad) {
    return false;
  }
  const size_t bytes = with_shape(
      p, [](auto shape, int64_t) { return kStages * sizeof(typename decltype(shape)::Tile); });
  if (current_gpu().shared_bytes < static_cast<int>(bytes)) return false;
  constexpr int64_t kMaxStride = INT32_MAX / (2 * kMaxSteps);
  const size_t element = p.dtype == MAMBA_FP32 ? 4 : 2;
  const auto fits = [&](const mamba_sequence& s) {
    return (element == 4 ? rows_aligned<16>(s, 4) : rows_aligned<8>(s, 2)) &&
           s.step_stride < kMaxStride && s.step_stride >= 0;
  };
  return fits(p.u) && fits(p.delta) && fits(p.B) && fits(p.C) && (!p.z.data || fits(p.z)) &&
         p.d_inner < kMaxStride && p.length < INT32_MAX && is_aligned<16>(p.y, 0, 1);
}

cudaError_t launch_scan_pipe(const mamba_selective_scan_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return with_shape(p, [&](auto shape, int64_t width) {
      return launch<T, decltype(shape), 0>(p, {}, width, stream);
    });
  });
}

bool scan_does_dt_proj(const mamba_selective_scan_params& p, const ScanDtProj& proj) {
  if (p.dtype == MAMBA_FP32 || current_gpu().major < 8) return false;
  if (p.length <= kFewSteps || narrow_fits(p) || mma_fits(p) || !pipe_fits(p)) return false;
  if (count_parts(p, p.batch, current_tuning()) > 1) return false;
  if (proj.depth != 3 * kDtDepth && proj.depth != 4 * kDtDepth) return false;
  return rows_aligned<8>(proj.dt, 2) && with_shape(p, [](auto shape, int64_t) {
           return std::is_same_v<decltype(shape), PipeShape<FewChannels>>;
         });
}

cudaError_t launch_scan(const mamba_selective_scan_params& p, const ScanDtProj& proj,
                        cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return with_shape(p, [&](auto shape, int64_t width) {
      using S = decltype(shape);
      if constexpr (std::is_same_v<T, float> || !std::is_same_v<S, PipeShape<FewChannels>>) {
        return cudaErrorNotSupported;
      } else if (proj.depth == 3 * kDtDepth) {
        return launch<T, S, 3>(p, proj, width, stream);
      } else {
        return launch<T, S, 4>(p, proj, width, stream);
      }
    });
  });
}

}  // namespace mamba
