// The kernel of batch_product.cuh.
//
// A block owns some columns of W and a share of the depth; the blocks of a cluster share out the
// depth, and add up their sums in one another's shared memory, in a fixed order.
#include <algorithm>

#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/batch_ring.cuh"
#include "layer/cuda/product_sums.cuh"

namespace mamba {
namespace hopper {
namespace {

constexpr int kThreads = kConsumers + 32;

template <typename Tile>
constexpr int kBatchBytes =
    std::max(BatchRing<Tile>::kBytes, BatchRing<Tile>::kSumBytes) + kRingAlignment;

template <typename T, typename Tile>
__global__ void __launch_bounds__(kThreads)
    batch_product(const __grid_constant__ BatchProductMaps maps,
                  const __grid_constant__ BatchProduct s) {
  using L = BatchRing<Tile>;
  constexpr int kShares = Tile::kShares;
  extern __shared__ unsigned char unaligned[];
  __shared__ typename L::Barriers barriers;
  unsigned char* shared = aligned_for_ring(unaligned);
  let_next_launch_start();
  const L ring(shared, barriers);
  __syncthreads();

  const int first_column = blockIdx.x * L::kColumns, share = (s.steps + kShares - 1) / kShares;
  const int first_step = blockIdx.y * share;
  const int steps = max(0, min(share, s.steps - first_step));
  // A share of the rows, in the end, for each block of the cluster.
  const int block = blockIdx.y;
  const int rows = static_cast<int>(s.p.rows), own_rows = (rows + kShares - 1) / kShares;
  constexpr int kRowFours = L::kColumns / kFour;
  const int first_four = block * own_rows * kRowFours + threadIdx.x;
  const int end_four = threadIdx.x < kConsumers ? min(rows, (block + 1) * own_rows) * kRowFours : 0;
  const auto column_of = [&](int i) { return first_column + i % kRowFours * kFour; };
  float* sums = reinterpret_cast<float*>(shared);
  if (threadIdx.x == kConsumers) {
    ring.fill(maps, s, first_column, first_step, steps);
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
    ring.template multiply<T>(steps, sums);
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
  using L = BatchRing<Tile>;
  const dim3 grid(static_cast<unsigned>((s.p.columns + L::kColumns - 1) / L::kColumns),
                  Tile::kShares);
  return launch_overlapping_clusters(batch_product<T, Tile>, grid, dim3(1, Tile::kShares),
                                     dim3(kThreads), kBatchBytes<Tile>, stream, maps, s);
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
    } else if (s.p.columns > kFewTiles * kBatchColumns) {
      return hopper::launch<T, BatchOfSomeColumns>(maps, s, stream);
    } else {
      return hopper::launch<T, BatchOfFewColumns>(maps, s, stream);
    }
  });
}

}  // namespace mamba
