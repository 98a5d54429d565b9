// The producers of ssd_outputs (ssd_hopper_outputs.cuh), and what they share with its consumers:
// the chunks that a block works on, and the ring of stages in shared memory that they pass through.
#pragma once

#include "state_space_dual/cuda/ssd_hopper_fragments.cuh"
#include "state_space_dual/cuda/ssd_hopper_steps.cuh"

namespace mamba {
namespace hopper {

// What a block works on: the first of its slices, and chunks first..end-1 of a sequence.
struct Work {
  int slice, batch, part, first, end;

  // The block's work number i; false where there is no more.
  template <typename Tiles, bool Split>
  __device__ __forceinline__ bool take(const SsdHopperArguments& p, int i) {
    if (Split) {
      slice = blockIdx.x * Tiles::kSlices;
      batch = blockIdx.z;
      part = gridDim.y - 1 - blockIdx.y;
      first = part * p.part_chunks;
      end = min(first + p.part_chunks, p.chunks);
      return i == 0;
    }
    const int wide = (p.slices + Tiles::kSlices - 1) / Tiles::kSlices;
    const int item = blockIdx.x + i * gridDim.x;
    batch = item / wide;
    slice = item % wide * Tiles::kSlices;
    part = 0;
    first = 0;
    end = p.chunks;
    return batch < p.batch;
  }
};

// A place in the ring of stages, and the parity of its barriers.
template <int Stages>
struct Ring {
  int stage = 0, parity = 0;
  bool filled = false;  // every stage was used

  __device__ __forceinline__ void next() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
      filled = true;
    }
  }
  // A producer waits for the consumers to leave the stage, from the second round on.
  __device__ __forceinline__ void wait_until_empty(uint32_t empty) const {
    if (filled) barrier_wait(empty + 8 * stage, parity ^ 1);
  }
};

// --- Producers -----------------------------------------------------------------------------------

// Brings the initial states of a work to come into the L2 cache.
template <typename Tiles>
__device__ __forceinline__ void prefetch_states(const SsdHopperArguments& p, const Work& work) {
  const int size = p.state_is_fp32 ? 4 : 2;
#pragma unroll
  for (int k = 0; k < Tiles::kSlices; ++k) {
    const Slice slice(p, work.slice + k);
    if (slice.head >= p.heads) return;
    const int64_t first = state_offset<Tiles::kStates>(p, work.batch, slice) * size;
    prefetch(static_cast<const char*>(p.initial_state) + first,
             slice.channels * Tiles::kStates * size);
  }
}

template <typename Tiles, bool Split>
__device__ __forceinline__ void load_tiles(const SsdHopperMaps& maps, const SsdHopperArguments& p,
                                           uint32_t shared) {
  Ring<Tiles::kStages> ring;
  Work work;
  for (int i = 0; work.take<Tiles, Split>(p, i); ++i) {
    Work next;
    if (!Split && p.initial_state && next.take<Tiles, Split>(p, i + 1)) {
      prefetch_states<Tiles>(p, next);
    }
    const int group = work.slice / p.slices_a_group;
    int heads[Tiles::kSlices], channels[Tiles::kSlices];
#pragma unroll
    for (int k = 0; k < Tiles::kSlices; ++k) {
      const Slice slice(p, work.slice + k);
      heads[k] = slice.head;
      channels[k] = slice.channel;
    }
    for (int chunk = work.first; chunk < work.end; ++chunk, ring.next()) {
      ring.wait_until_empty(shared + Tiles::kEmpty);
      const uint32_t tiles = shared + ring.stage * Tiles::kStageBytes;
      const uint32_t full = shared + Tiles::kFull + 8 * ring.stage;
      const int step = chunk * kHopperChunk;
      barrier_expect(full, Tiles::kStageBytes);
#pragma unroll
      for (int k = 0; k < Tiles::kStates / 64; ++k) {
        tma_load(tiles + k * kTileBytes, &maps.B, full, 64 * k, group, step, work.batch);
        tma_load(tiles + Tiles::kC + k * kTileBytes, &maps.C, full, 64 * k, group, step,
                 work.batch);
      }
#pragma unroll
      for (int k = 0; k < Tiles::kSlices; ++k) {
        tma_load(tiles + Tiles::kX + k * kTileBytes, &maps.x, full, channels[k], heads[k], step,
                 work.batch);
      }
    }
  }
}

// The factors of one slice's chunks. dt is fetched kAhead chunks ahead.
template <typename T, typename Tiles, bool Split>
__device__ __forceinline__ void make_factors(const SsdHopperArguments& p, char* memory,
                                             uint32_t shared, int own) {
  constexpr int kAhead = 4;
  Ring<Tiles::kStages> ring;
  Work work;
  for (int i = 0; work.take<Tiles, Split>(p, i); ++i) {
    const Steps<T> steps(p, work.batch, Slice(p, min(work.slice + own, p.slices - 1)).head);
    T raw[kAhead][2] = {};
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      steps.fetch(work.first + k, work.first + k < work.end, raw[k]);
    }
    for (int base = work.first; base < work.end; base += kAhead) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int chunk = base + k;
        if (chunk < work.end) {
          const ChunkSteps of_chunk(steps, chunk, raw[k]);
          steps.fetch(chunk + kAhead, chunk + kAhead < work.end, raw[k]);
          ring.wait_until_empty(shared + Tiles::kEmpty);
          of_chunk.write_factors(reinterpret_cast<float*>(memory + Tiles::kFactors) +
                                 (ring.stage * Tiles::kSlices + own) * Factors::kCount);
          __syncwarp();
          if ((threadIdx.x & 31) == 0) barrier_arrive(shared + Tiles::kFull + 8 * ring.stage);
          ring.next();
        }
      }
    }
  }
}

}  // namespace hopper
}  // namespace mamba
