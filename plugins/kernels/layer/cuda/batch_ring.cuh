// The ring of the products of a batch's rows (batch_product.cuh): one thread lets the copy engine
// fill its stages, weights as early as while the kernel ahead still runs; a warpgroup multiplies.
#pragma once

#include "common/cuda/hopper_ptx.cuh"
#include "common/cuda/hopper_wgmma.cuh"
#include "layer/cuda/batch_product.cuh"

namespace mamba {
namespace hopper {

constexpr int kConsumers = 128;             // threads that multiply: the first of a block
constexpr int kRowBytes = 2 * kBatchDepth;  // of x in a stage

// Tile: its kTiles times kBatchColumns columns, kStages, and kRows rows of x.
template <typename Tile>
struct BatchRing {
  static constexpr int kTiles = Tile::kTiles, kStages = Tile::kStages, kRows = Tile::kRows;
  static constexpr int kColumns = kTiles * kBatchColumns, kSumStride = kColumns + 4;
  static constexpr int kSums = kTiles * 32;                                    // of a thread
  static constexpr int kStageBytes = kTiles * kTileBytes + kRows * kRowBytes;  // weights, then x
  // Products read a tile of x whole, beyond its kRows rows what lies there: the next stage, or what
  // is left free after the last one. It goes into sums that nobody keeps.
  static constexpr int kBytes = kStages * kStageBytes + kTileBytes - kRows * kRowBytes;
  static constexpr int kSumBytes = 4 * kRows * kSumStride;

  struct Barriers {
    uint64_t full[kStages], empty[kStages];
  };

  uint32_t stages, full, empty;

  // stages: aligned to 1024 bytes. All threads of the block call it; a __syncthreads has to follow.
  __device__ __forceinline__ BatchRing(const void* ring, Barriers& barriers)
      : stages(shared_address(ring)),
        full(shared_address(barriers.full)),
        empty(shared_address(barriers.empty)) {
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, kConsumers / 32);
    }
    barriers_are_ready();
  }

  // One thread: `steps` of the depth from first_step on. It waits for the launch before this one.
  __device__ __forceinline__ void fill(const BatchProductMaps& maps, const BatchProduct& s,
                                       int first_column, int first_step, int steps) const {
    const auto load_weights = [&](int step) {
      const int stage = step % kStages;
      const uint32_t barrier = full + 8 * stage;
      barrier_expect(barrier, kTiles * kTileBytes + s.x_rows * kRowBytes);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        tma_load(stages + stage * kStageBytes + tile * kTileBytes, &maps.weights, barrier,
                 first_column + tile * kBatchColumns, 0, (first_step + step) * kBatchDepth, 0);
      }
    };
    const auto load_x = [&](int step) {
      const int stage = step % kStages;
      const uint32_t to = stages + stage * kStageBytes + kTiles * kTileBytes;
      const int depth = (first_step + step) * kBatchDepth;
      tma_load(to, &maps.x, full + 8 * stage, depth, 0, 0, 0);
    };
    const int ahead = min(kStages, steps);
    if (s.reads_early) {
      for (int step = 0; step < ahead; ++step) load_weights(step);
    }
    wait_for_previous_launch();
    for (int step = 0; step < ahead; ++step) {
      if (!s.reads_early) load_weights(step);
      load_x(step);
    }
    for (int step = ahead; step < steps; ++step) {
      barrier_wait(empty + 8 * (step % kStages), (step / kStages - 1) & 1);
      load_weights(step);
      load_x(step);
    }
  }

  // The warpgroup: the product of all steps, as fp32 rows of kSumStride numbers where the ring was.
  template <typename T>
  __device__ __forceinline__ void multiply(int steps, float* sums) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float d[kSums] = {};
    pin(d);
    for (int step = 0; step < steps; ++step) {
      const int stage = step % kStages;
      barrier_wait(full + 8 * stage, step / kStages & 1);
      const uint32_t weights = stages + stage * kStageBytes;
      const uint32_t right = down_rows(weights), left = along_rows(weights + kTiles * kTileBytes);
      products_begin();
#pragma unroll
      for (int k = 0; k < kBatchDepth / 16; ++k) {
        multiply_tile_down_rows<T>(d, descriptor(left + k * kColumnStep),
                                   descriptor(right + k * kRowStep), 1);
      }
      products_commit();
      if (step > 0) {
        products_wait<1>();
        if (lane == 0) barrier_arrive(empty + 8 * ((step - 1) % kStages));
      }
    }
    products_wait<0>();
    pin(d);
    warpgroup_sync(1);  // the others' products have read the ring
    const int row = warp * 16 + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kTiles * 8; ++j) {
      float* to = sums + row * kSumStride + 8 * j + column;
      if (kRows == kBatchProductRows || row < kRows) {
        *reinterpret_cast<float2*>(to) = make_float2(d[4 * j], d[4 * j + 1]);
      }
      if (kRows == kBatchProductRows || row + 8 < kRows) {
        *reinterpret_cast<float2*>(to + 8 * kSumStride) = make_float2(d[4 * j + 2], d[4 * j + 3]);
      }
    }
  }
};

// The first place in shared memory that the ring may have: aligned to 1024 bytes.
__device__ __forceinline__ unsigned char* aligned_for_ring(unsigned char* shared) {
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(shared) + 1023) / 1024 *
                                          1024);
}
constexpr int kRingAlignment = 1024;

}  // namespace hopper
}  // namespace mamba
