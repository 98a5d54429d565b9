// The kernel for Hopper that walks chunks and writes y and the last state (ssd_hopper.cuh has the
// algorithm). Not split: a block walks whole sequences, one after another. Split: blockIdx.y is a
// part of the length, the last first, and the states of the parts before it come from ssd_states.
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

// --- A consumer's steps --------------------------------------------------------------------------

// S of the chunk: waits for the products C_i . B_j, puts decay, dt, mask and D onto them, and
// writes them as T into the tile scores. A warp has 16 rows, its block. Within the block, the
// exponent of each pair of steps is at most 0 (what lies above the diagonal is selected away); for
// earlier blocks the factor is a product of one from step j to the block's start and one from
// there.
template <typename T>
__device__ __forceinline__ void write_scores(float (&s)[32], uint32_t factors, float D,
                                             const Place& place, uint32_t scores) {
  const int row = place.row, column = place.column, warp = place.warp;
  const float exponent0 = load_float(factors + 4 * (Factors::kExponent + row));
  const float exponent1 = load_float(factors + 4 * (Factors::kExponent + row + 8));
  const float2 own0 = load_floats(factors + 4 * (Factors::kOwn + 16 * warp + column));
  const float2 own1 = load_floats(factors + 4 * (Factors::kOwn + 16 * warp + 8 + column));
  const float here0 = exp2_fast(exponent0), here1 = exp2_fast(exponent1);
  const int earlier = Factors::kToBlock + (warp > 0 ? warp - 1 : 0) * kHopperChunk;
  float2 to_block[6];
#pragma unroll
  for (int j = 0; j < 6; ++j) to_block[j] = load_floats(factors + 4 * (earlier + 8 * j + column));

  const int diagonal = place.lane >> 2, matrix = place.lane >> 3;
  const bool keep0 = column <= diagonal, keep1 = column + 1 <= diagonal;
  const float skip0 = column == diagonal ? D : 0.f, skip1 = column + 1 == diagonal ? D : 0.f;
  const uint32_t own_row =
      scores + in_tile(16 * warp + (matrix & 1) * 8 + (place.lane & 7), matrix >> 1);
  products_wait<1>();
  pin(s);
#pragma unroll
  for (int j = 0; j < 4; ++j) {  // blocks of 16 columns
    uint32_t f0 = 0, f1 = 0, f2 = 0, f3 = 0;
    const float* at = s + 8 * j;
    if (j == warp) {
      const float upper0 = at[0] * exp2_fast(exponent0 - own0.x);
      const float upper1 = at[1] * exp2_fast(exponent0 - own0.y);
      const float lower0 = at[6] * exp2_fast(exponent1 - own1.x);
      const float lower1 = at[7] * exp2_fast(exponent1 - own1.y);
      f0 = Pair<T>::of((keep0 ? upper0 : 0.f) + skip0, (keep1 ? upper1 : 0.f) + skip1);
      f1 =
          Pair<T>::of(at[2] * exp2_fast(exponent1 - own0.x), at[3] * exp2_fast(exponent1 - own0.y));
      f3 = Pair<T>::of((keep0 ? lower0 : 0.f) + skip0, (keep1 ? lower1 : 0.f) + skip1);
    } else if (j < 3 && j < warp) {
      const float2 left = to_block[j < 3 ? 2 * j : 0], right = to_block[j < 3 ? 2 * j + 1 : 0];
      f0 = Pair<T>::of(at[0] * (here0 * left.x), at[1] * (here0 * left.y));
      f1 = Pair<T>::of(at[2] * (here1 * left.x), at[3] * (here1 * left.y));
      f2 = Pair<T>::of(at[4] * (here0 * right.x), at[5] * (here0 * right.y));
      f3 = Pair<T>::of(at[6] * (here1 * right.x), at[7] * (here1 * right.y));
    }
    store_fragments(own_row ^ (j * 32), f0, f1, f2, f3);  // two places on, in the swizzle
  }
}

// y silu(z): z lies in the tile as x does, and its fragments have y's places.
template <typename T>
__device__ __forceinline__ void gate(float (&y)[32], uint32_t rows) {
  uint32_t z[16];
  load_channels(rows, z);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float2 two = Pair<T>::floats(z[i]);
    y[2 * i] *= silu<T>(two.x);
    y[2 * i + 1] *= silu<T>(two.y);
  }
}

// D of this thread's two channels, or of channels that exist.
__device__ __forceinline__ float2 channel_skip(const SsdHopperArguments& p, const Slice& slice,
                                               const Place& place) {
  const float* D = p.D + int64_t{min(slice.head, p.heads - 1)} * p.d_skip;
  const auto of = [&](int row) {
    return D[min(slice.channel + row, p.head_dim - 1) * p.d_skip / p.head_dim];
  };
  return {of(place.row), of(place.row + 8)};
}

// The state that the part begins with.
template <typename T, int States, bool Split>
__device__ __forceinline__ void begin_state(const SsdHopperArguments& p, const Work& work,
                                            const Slice& slice, const Place& place,
                                            float (&h)[States / 2]) {
#pragma unroll
  for (int i = 0; i < States / 2; ++i) h[i] = 0.f;
  const bool split = Split && p.parts > 1, copied = split && p.initial_copy;
  const void* initial = copied ? p.initial_copy : p.initial_state;
  const bool exists = slice.head < p.heads;
  if (copied) wait_for_previous_launch();
  if (initial && exists) load_state<T, States>(p, initial, work.batch, slice, place, h);
  if (split) wait_for_previous_launch();
  if (!split || !exists) return;
  const auto index = [&](int part) {
    return (int64_t{part} * p.batch + work.batch) * p.slices + slice.index;
  };
  Part<T, States> even, odd;
  if (work.part > 0) even.load(p, index(0), place);
  if (work.part > 1) odd.load(p, index(1), place);
  for (int part = 0; part < work.part; part += 2) {
    even.apply(h);
    if (part + 2 < work.part) even.load(p, index(part + 2), place);
    if (part + 1 < work.part) {
      odd.apply(h);
      if (part + 3 < work.part) odd.load(p, index(part + 3), place);
    }
  }
}

template <typename T, typename Tiles, bool Gated, bool Split>
__device__ __forceinline__ void consume(const SsdHopperMaps& maps, const SsdHopperArguments& p,
                                        uint32_t shared, int own) {
  constexpr int kStates = Tiles::kStates;
  const Place place;
  const uint32_t rows = channel_rows(place);
  const uint32_t scores = shared + Tiles::kScores + own * kTileBytes;
  const uint32_t outputs = shared + Tiles::kOutputs + own * 2 * kTileBytes;
  const uint32_t gates = shared + Tiles::kGate + own * 16;
  const bool leader = place.thread == 0;
  const int barrier = 1 + own;
  Ring<Tiles::kStages> ring;
  int chunks_done = 0;

  // z is loaded where y will be written, when y of two chunks ago has been stored from there.
  const auto load_gate = [&](const Work& work, const Slice& slice, int chunk, int number) {
    wait_for_store_reads<0>();
    const uint32_t arrived = gates + 8 * (number & 1);
    barrier_expect(arrived, kTileBytes);
    tma_load(outputs + (number & 1) * kTileBytes, &maps.z, arrived, slice.channel, slice.head,
             chunk * kHopperChunk, work.batch);
  };

  Work work;
  for (int i = 0; work.take<Tiles, Split>(p, i); ++i) {
    const Slice slice(p, work.slice + own);
    if (Gated) {
      if (leader) load_gate(work, slice, work.first, chunks_done);
      __syncwarp();
    }
    float h[kStates / 2];
    begin_state<T, kStates, Split>(p, work, slice, place, h);
    const bool skip_of_head = p.d_skip == 1;
    const float2 skip = channel_skip(p, slice, place);

    for (int chunk = work.first; chunk < work.end; ++chunk, ++chunks_done) {
      const uint32_t tiles = shared + ring.stage * Tiles::kStageBytes;
      const uint32_t x_tile = tiles + Tiles::kX + own * kTileBytes;
      const uint32_t factors =
          shared + Tiles::kFactors + (ring.stage * Tiles::kSlices + own) * Factors::kCount * 4;
      const uint32_t output = outputs + (chunks_done & 1) * kTileBytes;
      float y[32], s[32];
      uint32_t packed[kStates / 4], x[16], weighed[16];
      const float grow = pack_state<T>(h, packed);

      // C B^T, and the state's part of the outputs, h C^T.
      barrier_wait(shared + Tiles::kFull + 8 * ring.stage, ring.parity);
      const uint32_t B_rows = along_rows(tiles), C_rows = along_rows(tiles + Tiles::kC);
      pin(s);
      pin(y);
      products_begin();
#pragma unroll
      for (int k = 0; k < kStates / 16; ++k) {
        const uint32_t at = (k >> 2) * kTileStep + (k & 3) * kColumnStep;
        multiply_tiles<T>(s, descriptor(C_rows + at), descriptor(B_rows + at), k > 0);
      }
      products_commit();
#pragma unroll
      for (int k = 0; k < kStates / 16; ++k) {
        const uint32_t at = (k >> 2) * kTileStep + (k & 3) * kColumnStep;
        multiply_along_rows<T>(y, packed + 4 * k, descriptor(C_rows + at), k > 0);
      }
      products_commit();

      const float chunk_decay = load_float(factors + 4 * Factors::kChunk);
#pragma unroll
      for (int k = 0; k < kStates / 2; ++k) h[k] *= chunk_decay;
      // Leaves the tile of outputs free that this chunk writes, or the next one where there is a
      // gate.
      if (leader) {
        if (!Gated) wait_for_store_reads<1>();
        if (Gated && chunk + 1 < work.end) load_gate(work, slice, chunk + 1, chunks_done + 1);
      }
      __syncwarp();
      write_scores<T>(s, factors, skip_of_head ? skip.x : 0.f, place, scores);
      load_channels(x_tile + rows, x);
      publish_shared_writes();
      warpgroup_sync(barrier);

      weigh<T>(factors + 4 * Factors::kToEnd, place, x, weighed);
      float2 from_start[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        from_start[j] = load_floats(factors + 4 * (Factors::kFromStart + 8 * j + place.column));
        if constexpr (std::is_same<T, __half>::value) {
          from_start[j].x *= grow;
          from_start[j].y *= grow;
        }
      }
      products_wait<0>();
      pin(y);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        y[4 * j] *= from_start[j].x;
        y[4 * j + 1] *= from_start[j].y;
        y[4 * j + 2] *= from_start[j].x;
        y[4 * j + 3] *= from_start[j].y;
      }
      if (!skip_of_head) {
#pragma unroll
        for (int k = 0; k < 16; ++k) {
          const float2 two = Pair<T>::floats(x[k]);
          const float own_skip = k % 2 ? skip.y : skip.x;
          y[2 * k] += own_skip * two.x;
          y[2 * k + 1] += own_skip * two.y;
        }
      }

      // The chunk's own part of the outputs, X^T S^T, and what it adds to the state.
      pin(y);
      pin(h);
      products_begin();
      const uint32_t score_rows = along_rows(scores), B_down = down_rows(tiles);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        multiply_along_rows<T>(y, x + 4 * k, descriptor(score_rows + k * kColumnStep), 1);
      }
      products_commit();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        multiply_down_rows<T>(h, weighed + 4 * k, descriptor(B_down + k * kRowStep), 1);
      }
      products_commit();
      products_wait<1>();
      pin(y);

      if (Gated) {
        barrier_wait(gates + 8 * (chunks_done & 1), chunks_done >> 1 & 1);
        gate<T>(y, output + rows);
        __syncwarp();
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* at = y + 8 * j;
        store_transposed(output + rows + j * kNextRows, Pair<T>::of(at[0], at[1]),
                         Pair<T>::of(at[2], at[3]), Pair<T>::of(at[4], at[5]),
                         Pair<T>::of(at[6], at[7]));
      }
      publish_shared_writes();
      warpgroup_sync(barrier);
      if (leader)
        tma_store(&maps.y, output, slice.channel, slice.head, chunk * kHopperChunk, work.batch);
      products_wait<0>();
      pin(h);
      __syncwarp();
      if (place.lane == 0) barrier_arrive(shared + Tiles::kEmpty + 8 * ring.stage);
      ring.next();
    }
    if (slice.head < p.heads && work.end == p.chunks) {
      save_state<T, kStates>(p, work.batch, slice, place, h);
    }
  }
  if (leader) wait_for_stores();
}

template <typename T, typename Tiles, bool Gated, bool Split>
__global__ void __launch_bounds__(Tiles::kThreads, Tiles::kBlocks)
    ssd_outputs(const __grid_constant__ SsdHopperMaps maps,
                const __grid_constant__ SsdHopperArguments p) {
  extern __shared__ char unaligned[];
  char* memory = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(unaligned) + 1023) &
                                         ~static_cast<uintptr_t>(1023));
  const uint32_t shared = shared_address(memory);
  if (threadIdx.x == 0) {
    prefetch_map(&maps.x);
    prefetch_map(&maps.B);
    prefetch_map(&maps.C);
    prefetch_map(&maps.y);
    for (int i = 0; i < Tiles::kStages; ++i) {
      barrier_init(shared + Tiles::kFull + 8 * i, 1 + Tiles::kSlices);   // the copies, the factors
      barrier_init(shared + Tiles::kEmpty + 8 * i, 4 * Tiles::kSlices);  // the consumers' warps
    }
    for (int i = 0; i < 2 * Tiles::kSlices; ++i) barrier_init(shared + Tiles::kGate + 8 * i, 1);
    barriers_are_ready();
  }
  __syncthreads();
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) >> 5, 0);
  if (warp >= 4 * Tiles::kSlices) {
    give_registers_back<Tiles::kProducerRegisters>();
    const int role = warp - 4 * Tiles::kSlices;
    if (role == 0) {
      if ((threadIdx.x & 31) == 0) load_tiles<Tiles, Split>(maps, p, shared);
    } else if (role <= Tiles::kSlices) {
      make_factors<T, Tiles, Split>(p, memory, shared, role - 1);
    }
  } else {
    take_registers<Tiles::kConsumerRegisters>();
    consume<T, Tiles, Gated, Split>(maps, p, shared, warp >> 2);
  }
}

}  // namespace hopper
}  // namespace mamba
