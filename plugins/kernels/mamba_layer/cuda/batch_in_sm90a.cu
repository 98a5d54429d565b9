// The kernel of batch_in.cuh.
//
// A block owns some columns of in_proj, of all rows: of the gate it writes them; of x it convolves
// them at once, and multiplies them with their rows of x_proj. The blocks of a cluster, side by
// side along the channels, add up what they made of x_proj, in a fixed order.
#include <algorithm>

#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/batch_ring.cuh"
#include "layer/cuda/product_sums.cuh"
#include "mamba_layer/calls.h"
#include "mamba_layer/cuda/batch_conv.cuh"
#include "mamba_layer/cuda/batch_in.cuh"

namespace mamba {
namespace hopper {
namespace {

using batch::apart, batch::kVector;

constexpr int kWorkers = batch::kThreads, kThreads = kWorkers + 32;  // and the ring's

// In shared memory: the ring, in whose place lie, afterwards, sums of in_proj, u (rows, stride) and
// sums of x_proj (rows, width); then x_proj's rows (kColumns, stride).
template <typename Tile>
struct BatchInShared {
  using Ring = BatchRing<Tile>;
  static constexpr int kUStride = apart(Ring::kColumns);
  static constexpr int kRows = std::max(Ring::kRows, 16);  // of whole tiles of x_proj's products
  static constexpr int kU = Ring::kSumBytes;
  static constexpr int kSums = kU + 2 * kRows * kUStride;
  int stride;
  size_t weights, bytes;

  __host__ __device__ explicit BatchInShared(int width) {
    stride = apart(width);
    const size_t used = kSums + sizeof(float) * kRows * width;
    weights = used > Ring::kBytes ? (used + 127) / 128 * 128 : Ring::kBytes;
    // A half tile beyond the last column may be read.
    bytes = weights + 2 * (Ring::kColumns * stride + kVector) + kRingAlignment;
  }
};

template <typename T, typename Tile>
__global__ void __launch_bounds__(kThreads)
    project_and_convolve(const __grid_constant__ BatchProductMaps maps,
                         const __grid_constant__ BatchIn s) {
  using L = BatchInShared<Tile>;
  using Ring = typename L::Ring;
  constexpr int kColumns = Ring::kColumns;
  extern __shared__ unsigned char unaligned[];
  __shared__ typename Ring::Barriers barriers;
  unsigned char* shared = aligned_for_ring(unaligned);
  const Ring ring(shared, barriers);
  __syncthreads();

  const BatchToken& token = s.token;
  const mamba_layer_params& p = token.layer;
  const int d_inner = static_cast<int>(p.d_inner), rows = token.rows, width = token.width;
  const int first_column = blockIdx.x * kColumns;
  const bool is_gate = first_column >= d_inner;
  const L at(width);
  float* sums = reinterpret_cast<float*>(shared);
  T* u_tile = reinterpret_cast<T*>(shared + L::kU);
  float* x_proj_sums = reinterpret_cast<float*>(shared + L::kSums);
  T* weights = reinterpret_cast<T*>(shared + at.weights);

  // A worker's four columns are the same in all of its rows.
  constexpr int kFours = kColumns / kFour, kRowsAtOnce = kWorkers / kFours;
  constexpr int kOwnRows = Ring::kRows / kRowsAtOnce;
  static_assert(kOwnRows * kRowsAtOnce == Ring::kRows, "workers have as many rows each");
  const int place = threadIdx.x % kFours * kFour, first_row = threadIdx.x / kFours;
  batch::ConvTaps taps;
  batch::ConvPast<T> past[kOwnRows];
  if (threadIdx.x == kWorkers) {
    ring.fill(maps, s.product, first_column, 0, s.product.steps);
  } else if (threadIdx.x < kWorkers) {
    const auto load_weights = [&] {
      if (is_gate) return;
      const int vectors = width / kVector;
      const T* from = static_cast<const T*>(p.x_proj_weight) + int64_t{first_column} * width;
#pragma unroll 1
      for (int i = threadIdx.x; i < kColumns * vectors; i += kWorkers) {
        const int row = i / vectors, v = i % vectors * kVector;
        copy_async(weights + row * at.stride + v, from + row * width + v, true);
      }
      commit_copies();
      taps = batch::load_taps(p, first_column + place);
    };
    if (s.product.reads_early) load_weights();
    wait_for_previous_launch();
    if (!s.product.reads_early) load_weights();
    if (!is_gate) {
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) {
        const int row = first_row + i * kRowsAtOnce;
        if (row < rows) past[i] = batch::load_past<T>(token, row, first_column + place);
      }
    }
    if (threadIdx.x < kConsumers) ring.template multiply<T>(s.product.steps, sums);
    // Not before the wait: the next kernel, which reads states at once, may then take all that was
    // queued ahead of this one as done. Nor before the product, which is quicker alone.
    let_next_launch_start();
    wait_for_copies();
  }
  __syncthreads();

  if (threadIdx.x < kWorkers) {
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int row = first_row + i * kRowsAtOnce;
      if (row >= rows) continue;
      const float4 sum = *reinterpret_cast<const float4*>(sums + row * Ring::kSumStride + place);
      const Pack<T, kFour> x = {from_float<T>(sum.x), from_float<T>(sum.y), from_float<T>(sum.z),
                                from_float<T>(sum.w)};
      if (is_gate) {
        T* to = static_cast<T*>(s.product.p.c) + row * s.product.p.c_stride + first_column + place;
        *reinterpret_cast<Pack<T, kFour>*>(to) = x;
      } else {
        *reinterpret_cast<Pack<T, kFour>*>(u_tile + row * L::kUStride + place) =
            batch::convolve_four(token, row, first_column + place, x, past[i], taps);
      }
    }
  }
  if (is_gate) return;  // the whole cluster is
  __syncthreads();

  if (threadIdx.x < kWorkers) {
    batch::multiply_x_proj<T, kColumns, L::kRows>(u_tile, weights, at.stride, width, rows,
                                                  x_proj_sums);
  }
  cluster_barrier();
  if (threadIdx.x < kWorkers) batch::add_up_shares(token, x_proj_sums, 0, rows);
  cluster_barrier();  // the others may still be reading this block's sums
}

template <typename T, typename Tile>
cudaError_t launch(const BatchProductMaps& maps, const BatchIn& s, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(2 * s.token.layer.d_inner / BatchRing<Tile>::kColumns));
  return launch_overlapping_clusters(project_and_convolve<T, Tile>, grid, dim3(kBatchCluster),
                                     dim3(kThreads), BatchInShared<Tile>(s.token.width).bytes,
                                     stream, maps, s);
}

}  // namespace
}  // namespace hopper

size_t batch_in_shared_bytes(const mamba_layer_params& p) {
  return with_batch_in_tile(p, [&](auto tile) {
    return hopper::BatchInShared<decltype(tile)>(static_cast<int>(projected_width(p))).bytes;
  });
}

cudaError_t launch_batch_in(const BatchProductMaps& maps, const BatchIn& s, cudaStream_t stream) {
  return with_type(s.token.layer.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (kIsWide<T>) {
      return cudaErrorNotSupported;
    } else {
      return with_batch_in_tile(s.token.layer, [&](auto tile) {
        return hopper::launch<T, decltype(tile)>(maps, s, stream);
      });
    }
  });
}

}  // namespace mamba
