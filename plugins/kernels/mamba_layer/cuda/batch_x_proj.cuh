// The first kernel of a batch's token: see batch_token.cuh.
//
// A block convolves its channels of its rows, and multiplies them with their rows of x_proj; the
// blocks of a cluster, side by side along the channels, add up what they made, in a fixed order.
#pragma once

#include "common/cuda/mma.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/one_step_conv.cuh"
#include "layer/cuda/product_sums.cuh"
#include "mamba_layer/cuda/batch_token.cuh"

namespace mamba {
namespace batch {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kVector = 8;                          // numbers of 16 bytes
constexpr int kRowThreads = kThreads / kBatchRows;  // that share a row

// Rows of `width` numbers of 16 bits start so far apart that eight of them, read together, lie in
// different banks.
__host__ __device__ constexpr int apart(int width) { return (width / kVector | 1) * kVector; }

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

// Four channels of a row: the convolution, SiLU, and the state.
template <typename T>
__device__ __forceinline__ Pack<T, kFour> convolve_four(const BatchToken& s, int row, int channel) {
  constexpr int kPast = kStepTaps - 1;
  using Four = Pack<T, kFour>;
  const mamba_layer_params& p = s.layer;
  const int d_inner = static_cast<int>(p.d_inner);
  const int64_t index = int64_t{row} * d_inner + channel;
  const Four x = *reinterpret_cast<const Four*>(static_cast<const T*>(s.parts.xz) + index +
                                                int64_t{row} * d_inner);
  union {
    Four packs[kPast];
    T numbers[kPast * kFour];
  } past, last;
  const Four* from =
      reinterpret_cast<const Four*>(static_cast<const T*>(p.conv_state) + index * kPast);
#pragma unroll
  for (int i = 0; i < kPast; ++i) past.packs[i] = from[i];
  const float4 biases = *reinterpret_cast<const float4*>(p.conv_bias + channel);
  const float bias[kFour] = {biases.x, biases.y, biases.z, biases.w};
  Four u;
#pragma unroll
  for (int j = 0; j < kFour; ++j) {
    const float4 w =
        *reinterpret_cast<const float4*>(p.conv_weight + int64_t{channel + j} * kStepTaps);
    const T* steps = past.numbers + j * kPast;
    float sum = bias[j];
    sum = fmaf(w.x, to_float(steps[0]), sum);
    sum = fmaf(w.y, to_float(steps[1]), sum);
    sum = fmaf(w.z, to_float(steps[2]), sum);
    sum = fmaf(w.w, to_float(x.values[j]), sum);
    u.values[j] = from_float<T>(silu<T>(sum));
    last.numbers[j * kPast] = steps[1];
    last.numbers[j * kPast + 1] = steps[2];
    last.numbers[j * kPast + 2] = x.values[j];
  }
  Four* to = reinterpret_cast<Four*>(static_cast<T*>(p.last_conv_state) + index * kPast);
#pragma unroll
  for (int i = 0; i < kPast; ++i) to[i] = last.packs[i];
  *reinterpret_cast<Four*>(static_cast<T*>(s.parts.u) + index) = u;
  return u;
}

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
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

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
    if (row < s.rows && channel < d_inner) u = convolve_four<T>(s, row, channel);
    *reinterpret_cast<Pack<T, kFour>*>(u_tile + r * kUStride + place) = u;
  }
  wait_for_copies();
  __syncthreads();

  const uint32_t left_address = shared_address(u_tile + lane % 16 * kUStride + lane / 16 * kVector);
  const uint32_t right_address =
      shared_address(weights + lane % 16 * at.stride + lane / 16 * kVector);
#pragma unroll 1
  for (int column = warp * 16; column < width; column += kWarps * 16) {
    float sum[2][4] = {};
#pragma unroll 4
    for (int k = 0; k < Channels; k += 16) {
      uint32_t left[4], right[4];
      load_tiles(left_address + 2 * k, left);
      load_tiles_transposed(right_address + 2 * (k * at.stride + column), right);
      multiply_add<T>(sum[0], left, right[0], right[1]);
      multiply_add<T>(sum[1], left, right[2], right[3]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = column + half * 8 + lane % 4 * 2;
      if (own >= width) continue;
      float* to = sums + lane / 4 * width + own;
      *reinterpret_cast<float2*>(to) = make_float2(sum[half][0], sum[half][1]);
      *reinterpret_cast<float2*>(to + 8 * width) = make_float2(sum[half][2], sum[half][3]);
    }
  }
  cluster_barrier();

  // Some rows for each block of the cluster.
  constexpr int kOwnRows = kBatchRows / kBatchCluster, kOwnThreads = kThreads / kOwnRows;
  const int r = blockIdx.x % kBatchCluster * kOwnRows + threadIdx.x / kOwnThreads;
  const int row = first_row + r;
  float* share = s.parts.shares + (int64_t{blockIdx.x / kBatchCluster} * s.rows + row) * width;
#pragma unroll 1
  for (int place = threadIdx.x % kOwnThreads * kFour; place < width; place += kOwnThreads * kFour) {
    const float4 total = sum_over_blocks(sums + r * width + place, kBatchCluster);
    if (row < s.rows) *reinterpret_cast<float4*>(share + place) = total;
  }
  cluster_barrier();  // the others may still be reading this block's sums
}

}  // namespace batch
}  // namespace mamba
