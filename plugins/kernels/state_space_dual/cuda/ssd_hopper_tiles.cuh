// What lies where in the shared memory of the kernels for Hopper, and how many threads and
// registers each role has. A tile is 64 rows (steps) of 64 numbers of 16 bits, 8 KiB, in the
// 128-byte swizzle: 16 bytes number k of row r lie at place k ^ (r % 8) of the row.
#pragma once

#include <cstdint>

#include "common/cuda/hopper_wgmma.cuh"
#include "state_space_dual/cuda/ssd_hopper.cuh"

namespace mamba {
namespace hopper {

constexpr int kWarpgroup = 128;

// The offset in a tile of the 16 bytes number column of a row.
__device__ __forceinline__ uint32_t in_tile(int row, int column) {
  return row * 128 + ((column ^ (row & 7)) << 4);
}

// Factors of one chunk and head, in floats. Exponents are of 2. A block is 16 steps, those of one
// warp of a consumer.
struct Factors {
  static constexpr int kExponent = 0;     // of the decay from the block's start through the step
  static constexpr int kOwn = 64;         // the same, less log2(dt)
  static constexpr int kToEnd = 128;      // dt times the decay after the step to the chunk's end
  static constexpr int kFromStart = 192;  // the decay from the chunk's start through the step
  static constexpr int kChunk = 256;      // the decay of the chunk
  static constexpr int kToBlock = 260;    // dt times the decay after it to the start of block 1,
  static constexpr int kCount = 260 + 3 * 64;  // 2, 3; zeros for steps that are not before it
};

// Of ssd_outputs. Stages: chunks that are in flight; Blocks: of a multiprocessor.
template <int Slices, int States, int Stages, int Blocks, int ProducerRegisters>
struct OutputTiles {
  static constexpr int kSlices = Slices, kStates = States, kStages = Stages, kBlocks = Blocks;
  static constexpr int kThreads = (Slices + 1) * kWarpgroup;
  // A thread is launched with its share of the multiprocessor's registers, a multiple of 8; then
  // the consumers take what the producers give back. Together they must not ask for more.
  static constexpr int kLaunchRegisters = 65536 / (kThreads * Blocks) / 8 * 8;
  static constexpr int kProducerRegisters = ProducerRegisters;
  static constexpr int kConsumerRegisters =
      ((Slices + 1) * kLaunchRegisters - ProducerRegisters) / Slices / 8 * 8;

  // A stage: B, C, then x of each slice.
  static constexpr int kC = States / 64 * kTileBytes;
  static constexpr int kX = 2 * kC;
  static constexpr int kStageBytes = kX + Slices * kTileBytes;

  static constexpr int kScores = Stages * kStageBytes;            // S, a tile a slice
  static constexpr int kOutputs = kScores + Slices * kTileBytes;  // two tiles a slice: z, then y
  static constexpr int kFactors = kOutputs + 2 * Slices * kTileBytes;
  static constexpr int kFull = kFactors + Stages * Slices * Factors::kCount * 4;
  static constexpr int kEmpty = kFull + 8 * Stages;
  static constexpr int kGate = kEmpty + 8 * Stages;          // two a slice: its z has come
  static constexpr int kBytes = kGate + 16 * Slices + 1024;  // tiles start at multiples of 1024
  static_assert(kBytes * Blocks + Blocks * 1024 <= 228 * 1024, "shared memory");
};

// Of ssd_states, whose only factor is kToEnd.
template <int Slices, int States, int Stages, int Blocks>
struct StateTiles {
  static constexpr int kSlices = Slices, kStates = States, kStages = Stages, kBlocks = Blocks;
  static constexpr int kThreads = (Slices + 1) * kWarpgroup;
  static constexpr int kX = States / 64 * kTileBytes;
  static constexpr int kStageBytes = kX + Slices * kTileBytes;
  static constexpr int kWeights = Stages * kStageBytes;
  static constexpr int kFull = kWeights + Stages * Slices * kHopperChunk * 4;
  static constexpr int kEmpty = kFull + 8 * Stages;
  static constexpr int kBytes = kEmpty + 8 * Stages + 1024;
  static_assert(kBytes * Blocks + Blocks * 1024 <= 228 * 1024, "shared memory");
};

// The channels of a consumer; slices from slices on are of heads that do not exist.
struct Slice {
  int index, head, channel, channels;

  __device__ __forceinline__ Slice(const SsdHopperArguments& p, int slice)
      : index(slice),
        head(slice / p.slices_a_head),
        channel(slice % p.slices_a_head * kHopperSlice),
        channels(min(p.head_dim - channel, kHopperSlice)) {}
};

// Where a thread of a consumer stands in the fragments of its warpgroup.
struct Place {
  int thread, warp, lane;
  int row;     // its rows of an accumulator are row and row + 8
  int column;  // its columns are column and column + 1 of each 8

  __device__ __forceinline__ Place()
      : thread(threadIdx.x & 127),
        warp(thread >> 5),
        lane(threadIdx.x & 31),
        row(16 * warp + (lane >> 2)),
        column(2 * (lane & 3)) {}
};

}  // namespace hopper
}  // namespace mamba
