// The kernel of batch_product.cuh.
//
// A block owns some columns of W and a share of the depth; the blocks of a cluster share out the
// depth, and add up their sums in one another's shared memory, in a fixed order. One thread lets
// the copy engine fill a ring of stages, weights as early as while the kernel ahead still runs; a
// warpgroup multiplies.
#include <algorithm>

#include "common/cuda/hopper_ptx.cuh"
#include "common/cuda/hopper_wgmma.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/batch_product.cuh"
#include "layer/cuda/product_sums.cuh"

namespace mamba {
namespace hopper {
namespace {

constexpr int kConsumers = 128, kThreads = kConsumers + 32;

template <typename Tile>
struct BatchLayout {
  static constexpr int kTiles = Tile::kTiles, kStages = Tile::kStages;
  static constexpr int kColumns = kTiles * kBatchColumns, kSumStride = kColumns + 4;
  static constexpr int kSums = kTiles * 32;                      // of a thread
  static constexpr int kStageBytes = (kTiles + 1) * kTileBytes;  // weights, then x
  static constexpr int kSumBytes = 4 * kBatchProductRows * kSumStride;
  static constexpr int kBytes = std::max(kStages * kStageBytes, kSumBytes) + 1024;  // to align
};

template <typename T, typename Tile>
__global__ void __launch_bounds__(kThreads)
    batch_product(const __grid_constant__ BatchProductMaps maps,
                  const __grid_constant__ BatchProduct s) {
  using L = BatchLayout<Tile>;
  constexpr int kTiles = Tile::kTiles, kStages = Tile::kStages, kShares = Tile::kShares;
  extern __shared__ unsigned char unaligned[];
  __shared__ uint64_t full[kStages], empty[kStages];
  unsigned char* shared = reinterpret_cast<unsigned char*>(
      (reinterpret_cast<uintptr_t>(unaligned) + 1023) / 1024 * 1024);
  const uint32_t ring = shared_address(shared);
  const uint32_t first_full = shared_address(full), first_empty = shared_address(empty);
  let_next_launch_start();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      barrier_init(first_full + 8 * i, 1);
      barrier_init(first_empty + 8 * i, kConsumers / 32);
    }
    barriers_are_ready();
  }
  __syncthreads();

  const int first_column = blockIdx.x * L::kColumns, share = (s.steps + kShares - 1) / kShares;
  const int first_step = blockIdx.y * share;
  const int steps = max(0, min(share, s.steps - first_step));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // A share of the rows, in the end, for each block of the cluster.
  const int block = blockIdx.y;
  const int rows = static_cast<int>(s.p.rows), own_rows = (rows + kShares - 1) / kShares;
  constexpr int kRowFours = L::kColumns / kFour;
  const int first_four = block * own_rows * kRowFours + threadIdx.x;
  const int end_four = threadIdx.x < kConsumers ? min(rows, (block + 1) * own_rows) * kRowFours : 0;
  const auto column_of = [&](int i) { return first_column + i % kRowFours * kFour; };
  float* sums = reinterpret_cast<float*>(shared);
  if (threadIdx.x == kConsumers) {
    const auto load_weights = [&](int step) {
      const int stage = step % kStages;
      const uint32_t barrier = first_full + 8 * stage;
      barrier_expect(barrier, L::kStageBytes);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        tma_load(ring + stage * L::kStageBytes + tile * kTileBytes, &maps.weights, barrier,
                 first_column + tile * kBatchColumns, 0, (first_step + step) * kBatchDepth, 0);
      }
    };
    const auto load_x = [&](int step) {
      const int stage = step % kStages;
      tma_load(ring + stage * L::kStageBytes + kTiles * kTileBytes, &maps.x, first_full + 8 * stage,
               (first_step + step) * kBatchDepth, 0, 0, 0);
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
      barrier_wait(first_empty + 8 * (step % kStages), (step / kStages - 1) & 1);
      load_weights(step);
      load_x(step);
    }
  } else if (threadIdx.x < kConsumers) {
    wait_for_previous_launch();
    if (s.p.addend) {
      const int number = s.p.c_dtype == MAMBA_FP32 ? 4 : 2;
      for (int i = first_four; i < end_four; i += kConsumers) {
        const int64_t at = i / kRowFours * s.p.c_stride + column_of(i);
        if (column_of(i) >= s.p.columns) continue;
        prefetch_to_l1(static_cast<const char*>(s.p.addend) + number * at);
      }
    }
    float d[L::kSums] = {};
    pin(d);
    for (int step = 0; step < steps; ++step) {
      const int stage = step % kStages;
      barrier_wait(first_full + 8 * stage, step / kStages & 1);
      const uint32_t weights = ring + stage * L::kStageBytes;
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
        if (lane == 0) barrier_arrive(first_empty + 8 * ((step - 1) % kStages));
      }
    }
    products_wait<0>();
    pin(d);
    warpgroup_sync(1);  // the others' products have read the ring
    const int row = warp * 16 + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kTiles * 8; ++j) {
      float* to = sums + row * L::kSumStride + 8 * j + column;
      *reinterpret_cast<float2*>(to) = make_float2(d[4 * j], d[4 * j + 1]);
      *reinterpret_cast<float2*>(to + 8 * L::kSumStride) = make_float2(d[4 * j + 2], d[4 * j + 3]);
    }
  }

  __syncwarp();
  if constexpr (kShares > 1) {
    cluster_barrier();
  } else {
    __syncthreads();
  }
  for (int i = first_four; i < end_four; i += kConsumers) {
    const int row = i / kRowFours, place = i % kRowFours * kFour;
    const float4 total = sum_over_blocks(sums + row * L::kSumStride + place, kShares);
    if (column_of(i) >= s.p.columns) continue;
    write_product<T>(s.p, row * s.p.c_stride + column_of(i), total);
  }
  // The others may still be reading this block's sums.
  if constexpr (kShares > 1) cluster_barrier();
}

template <typename T, typename Tile>
cudaError_t launch(const BatchProductMaps& maps, const BatchProduct& s, cudaStream_t stream) {
  using L = BatchLayout<Tile>;
  const auto kernel = batch_product<T, Tile>;
  if (cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kBytes)) {
    return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = 1;
  attributes[1].val.clusterDim.y = Tile::kShares;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(static_cast<unsigned>((s.p.columns + L::kColumns - 1) / L::kColumns), Tile::kShares);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = L::kBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = Tile::kShares > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, maps, s);
}

}  // namespace
}  // namespace hopper

cudaError_t launch_batch_product(const BatchProductMaps& maps, const BatchProduct& s,
                                 cudaStream_t stream) {
  return with_type(s.p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (kIsWide<T>) {
      return cudaErrorNotSupported;
    } else if (s.p.columns >= kManyTiles * kBatchColumns) {
      return hopper::launch<T, BatchOfManyColumns>(maps, s, stream);
    } else {
      return hopper::launch<T, BatchOfFewColumns>(maps, s, stream);
    }
  });
}

}  // namespace mamba
