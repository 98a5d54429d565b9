// The first kernel of a batch's token: see batch_token.cuh.
//
// A block convolves its channels of its rows, and multiplies them with their rows of x_proj; the
// blocks of a cluster, side by side along the channels, add up what they made, in a fixed order.
#pragma once

#include "common/cuda/overlap.cuh"
#include "mamba_layer/cuda/batch_conv.cuh"

namespace mamba {
namespace batch {

template <int Channels>
struct XProjShared {
  int stride;  // of a row of x_proj
  size_t u, sums, bytes;

  __host__ __device__ explicit XProjShared(int width) {
    stride = apart(width);
    u = 2 * (Channels * stride + kVector);  // a half tile beyond the last column may be read
    sums = u + 2 * kBatchRows * apart(Channels);
    bytes = sums + sizeof(float) * kBatchRows * width;
  }
};

template <typename T, int Channels>
__global__ void __launch_bounds__(kThreads)
    convolve_and_project(const __grid_constant__ BatchToken s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const mamba_layer_params& p = s.layer;
  const XProjShared<Channels> at(s.width);
  T* weights = reinterpret_cast<T*>(shared);                 // (Channels, at.stride)
  T* u_tile = reinterpret_cast<T*>(shared + at.u);           // (kBatchRows, kUStride)
  float* sums = reinterpret_cast<float*>(shared + at.sums);  // (kBatchRows, width)
  constexpr int kUStride = apart(Channels), kFours = Channels / kFour;
  const int d_inner = static_cast<int>(p.d_inner), width = s.width;
  const int first_channel = blockIdx.x * Channels, first_row = blockIdx.y * kBatchRows;

  const auto load_weights = [&] {
    const int vectors = width / kVector;
    const T* from = static_cast<const T*>(p.x_proj_weight);
#pragma unroll 1
    for (int row = threadIdx.x / kRowThreads; row < Channels; row += kThreads / kRowThreads) {
      const bool exists = first_channel + row < d_inner;
      const T* of_row = from + (exists ? int64_t{first_channel + row} * width : 0);
#pragma unroll 1
      for (int v = threadIdx.x % kRowThreads; v < vectors; v += kRowThreads) {
        copy_async(weights + row * at.stride + v * kVector, of_row + v * kVector, exists);
      }
    }
    commit_copies();
  };
  if (p.constant_weights) load_weights();
#pragma unroll 2
  for (int i = threadIdx.x; i < kBatchRows * kFours; i += kThreads) {
    const int row = first_row + i / kFours, channel = first_channel + i % kFours * kFour;
    if (row >= s.rows || channel >= d_inner) continue;
    prefetch(static_cast<const T*>(p.conv_state) +
             (int64_t{row} * d_inner + channel) * (kStepTaps - 1));
    prefetch(p.conv_weight + int64_t{channel} * kStepTaps);
  }
  wait_for_earlier_kernels();
  // Not before: the next kernel, which reads states at once, may then take all that was queued
  // ahead of this one as done.
  let_next_kernel_start();
  if (!p.constant_weights) load_weights();

#pragma unroll 2
  for (int i = threadIdx.x; i < kBatchRows * kFours; i += kThreads) {
    const int r = i / kFours, place = i % kFours * kFour;
    const int row = first_row + r, channel = first_channel + place;
    Pack<T, kFour> u = {};
    if (row < s.rows && channel < d_inner) {
      const auto x = load_x<T>(s, row, channel);
      u = convolve_four(s, row, channel, x, load_past<T>(s, row, channel), load_taps(p, channel));
    }
    *reinterpret_cast<Pack<T, kFour>*>(u_tile + r * kUStride + place) = u;
  }
  wait_for_copies();
  __syncthreads();

  multiply_x_proj<T, Channels, kBatchRows>(u_tile, weights, at.stride, width, kBatchRows, sums);
  cluster_barrier();
  add_up_shares(s, sums, first_row, min(kBatchRows, s.rows - first_row));
  cluster_barrier();  // the others may still be reading this block's sums
}

}  // namespace batch
}  // namespace mamba
