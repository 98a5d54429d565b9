// The first of the two launches over a split length (ssd_hopper.cuh): what each part but the last
// adds to the state, sum_j (dt_j exp(decay after j to the part's end) x_j) B_j^T, and the part's
// whole decay. Chunks are walked backwards: then every weight is known when its chunk comes, and
// the sum is nothing but products.
#pragma once

#include "state_space_dual/cuda/ssd_hopper_fragments.cuh"
#include "state_space_dual/cuda/ssd_hopper_steps.cuh"

namespace mamba {
namespace hopper {

// Body(chunk, stage, round of the ring) for the part's chunks, the last first.
template <int Stages, typename Body>
__device__ __forceinline__ void each_chunk_backwards(int first, int end, Body body) {
  for (int i = 0; i < end - first; ++i) body(end - 1 - i, i % Stages, i / Stages);
}

template <typename Tiles>
__device__ __forceinline__ void load_state_tiles(const SsdHopperMaps& maps,
                                                 const SsdHopperArguments& p, uint32_t shared,
                                                 int first, int end) {
  const int first_slice = blockIdx.x * Tiles::kSlices, batch = blockIdx.z;
  const int group = first_slice / p.slices_a_group;
  each_chunk_backwards<Tiles::kStages>(first, end, [&](int chunk, int stage, int round) {
    if (round > 0) barrier_wait(shared + Tiles::kEmpty + 8 * stage, (round & 1) ^ 1);
    const uint32_t tiles = shared + stage * Tiles::kStageBytes;
    const uint32_t full = shared + Tiles::kFull + 8 * stage;
    barrier_expect(full, Tiles::kStageBytes);
#pragma unroll
    for (int k = 0; k < Tiles::kStates / 64; ++k) {
      tma_load(tiles + k * kTileBytes, &maps.B, full, 64 * k, group, chunk * kHopperChunk, batch);
    }
#pragma unroll
    for (int k = 0; k < Tiles::kSlices; ++k) {
      const Slice slice(p, first_slice + k);
      tma_load(tiles + Tiles::kX + k * kTileBytes, &maps.x, full, slice.channel, slice.head,
               chunk * kHopperChunk, batch);
    }
  });
}

// The weights of one slice's chunks. kAtOnce chunks are computed side by side, for the way from dt
// to a weight is long, and the dt of the next ones is fetched meanwhile.
template <typename T, typename Tiles>
__device__ __forceinline__ void make_weights(const SsdHopperArguments& p, char* memory,
                                             uint32_t shared, int first, int end, int own) {
  constexpr int kAtOnce = 4;
  const int slice = blockIdx.x * Tiles::kSlices + own, lane = threadIdx.x & 31;
  const Steps<T> steps(p, blockIdx.z, Slice(p, min(slice, p.slices - 1)).head);
  float after = 0.f;  // the exponent of the chunks that were walked
  T raw[kAtOnce][2] = {};
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) steps.fetch(end - 1 - k, end - 1 - k >= first, raw[k]);
  for (int base = 0; base < end - first; base += kAtOnce) {
    float2 weights[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int chunk = end - 1 - base - k;
      // Before the part's first chunk: like one behind the length, whose steps are 0.
      const ChunkSteps of_chunk(steps, chunk >= first ? chunk : p.chunks, raw[k]);
      steps.fetch(chunk - kAtOnce, chunk - kAtOnce >= first, raw[k]);
      weights[k] = of_chunk.weights(after);
      after += of_chunk.total();
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int number = base + k, stage = number % Tiles::kStages;
      if (number < end - first) {
        const int round = number / Tiles::kStages;
        if (round > 0) barrier_wait(shared + Tiles::kEmpty + 8 * stage, (round & 1) ^ 1);
        float* to = reinterpret_cast<float*>(memory + Tiles::kWeights) +
                    (stage * Tiles::kSlices + own) * kHopperChunk;
        reinterpret_cast<float2*>(to)[lane] = weights[k];
        __syncwarp();
        if (lane == 0) barrier_arrive(shared + Tiles::kFull + 8 * stage);
      }
    }
  }
  if (lane == 0 && slice < p.slices) {
    const int64_t index = (int64_t{blockIdx.y} * p.batch + blockIdx.z) * p.slices + slice;
    p.part_decays[index] = exp2_fast(after);
  }
}

// The second launch writes the last state while its other parts still read the initial one.
template <int States>
__device__ __forceinline__ void copy_initial_state(const SsdHopperArguments& p, int batch,
                                                   const Slice& slice, const Place& place) {
  const int size = p.state_is_fp32 ? 4 : 2, count = slice.channels * States * size / 16;
  const int64_t first = state_offset<States>(p, batch, slice) * size;
  const auto* from =
      reinterpret_cast<const uint4*>(static_cast<const char*>(p.initial_state) + first);
  auto* to = reinterpret_cast<uint4*>(static_cast<char*>(p.initial_copy) + first);
#pragma unroll 4
  for (int i = place.thread; i < count; i += kWarpgroup) to[i] = from[i];
}

template <typename T, typename Tiles>
__device__ __forceinline__ void sum_states(const SsdHopperArguments& p, uint32_t shared, int first,
                                           int end, int own) {
  constexpr int kStages = Tiles::kStages, kStates = Tiles::kStates;
  const Place place;
  const uint32_t rows = channel_rows(place);
  const int slice = blockIdx.x * Tiles::kSlices + own;
  if (blockIdx.y == 0 && p.initial_copy && slice < p.slices) {
    copy_initial_state<kStates>(p, blockIdx.z, Slice(p, slice), place);
  }
  float h[kStates / 2];
#pragma unroll
  for (int i = 0; i < kStates / 2; ++i) h[i] = 0.f;
  pin(h);
  // Products of one chunk run while the next one's operand is made.
  const auto add = [&](int number, uint32_t (&x)[16]) {
    const int stage = number % kStages;
    const uint32_t tiles = shared + stage * Tiles::kStageBytes;
    barrier_wait(shared + Tiles::kFull + 8 * stage, number / kStages & 1);
    load_channels(tiles + Tiles::kX + own * kTileBytes + rows, x);
    weigh<T>(shared + Tiles::kWeights + (stage * Tiles::kSlices + own) * kHopperChunk * 4, place, x,
             x);
    products_begin();
    const uint32_t B_down = down_rows(tiles);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      multiply_down_rows<T>(h, x + 4 * k, descriptor(B_down + k * kRowStep), 1);
    }
    products_commit();
    products_wait<1>();
    if (number > 0 && place.lane == 0) {
      barrier_arrive(shared + Tiles::kEmpty + 8 * ((number - 1) % kStages));
    }
  };
  uint32_t even[16], odd[16];
  int number = 0;
  for (; number + 1 < end - first; number += 2) {
    add(number, even);
    add(number + 1, odd);
  }
  if (number < end - first) add(number, even);
  products_wait<0>();
  pin(h);
  if (slice < p.slices) {
    save_part<T, kStates>(p, (int64_t{blockIdx.y} * p.batch + blockIdx.z) * p.slices + slice, place,
                          h);
  }
}

template <typename T, typename Tiles>
__global__ void __launch_bounds__(Tiles::kThreads, Tiles::kBlocks)
    ssd_states(const __grid_constant__ SsdHopperMaps maps,
               const __grid_constant__ SsdHopperArguments p) {
  extern __shared__ char unaligned[];
  char* memory = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(unaligned) + 1023) &
                                         ~static_cast<uintptr_t>(1023));
  const uint32_t shared = shared_address(memory);
  if (threadIdx.x == 0) {
    prefetch_map(&maps.x);
    prefetch_map(&maps.B);
    for (int i = 0; i < Tiles::kStages; ++i) {
      barrier_init(shared + Tiles::kFull + 8 * i, 1 + Tiles::kSlices);
      barrier_init(shared + Tiles::kEmpty + 8 * i, 4 * Tiles::kSlices);
    }
    barriers_are_ready();
  }
  __syncthreads();
  // In this order: the next launch reads, too, what the one before this wrote.
  wait_for_previous_launch();
  let_next_launch_start();
  const int first = blockIdx.y * p.part_chunks, end = min(first + p.part_chunks, p.chunks);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) >> 5, 0);
  if (warp >= 4 * Tiles::kSlices) {
    const int role = warp - 4 * Tiles::kSlices;
    if (role == 0) {
      if ((threadIdx.x & 31) == 0) load_state_tiles<Tiles>(maps, p, shared, first, end);
    } else if (role <= Tiles::kSlices) {
      make_weights<T, Tiles>(p, memory, shared, first, end, role - 1);
    }
  } else {
    sum_states<T, Tiles>(p, shared, first, end, warp >> 2);
  }
}

}  // namespace hopper
}  // namespace mamba
