// What a block of a batch's token does with the channels of its rows: the convolution, four
// channels of a row a thread, with SiLU and its state, and their products with x_proj.
#pragma once

#include "common/cuda/mma.cuh"
#include "common/cuda/numeric.cuh"
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

constexpr int kPast = kStepTaps - 1;

// The steps before, (channels, kPast).
template <typename T>
union ConvPast {
  uint2 words[kPast];
  Pack<T, kFour> packs[kPast];
  T numbers[kPast * kFour];
  __device__ ConvPast() {}
};

struct ConvTaps {
  float4 weights[kFour];
  float4 biases;
};

template <typename T>
__device__ __forceinline__ Pack<T, kFour> load_x(const BatchToken& s, int row, int channel) {
  return *reinterpret_cast<const Pack<T, kFour>*>(static_cast<const T*>(s.parts.xz) +
                                                  2 * int64_t{row} * s.layer.d_inner + channel);
}

template <typename T>
__device__ __forceinline__ ConvPast<T> load_past(const BatchToken& s, int row, int channel) {
  ConvPast<T> past;
  // Past the first-level cache, which may hold what this line was when an earlier kernel read it.
  const auto* from =
      reinterpret_cast<const uint2*>(static_cast<const T*>(s.layer.conv_state) +
                                     (int64_t{row} * s.layer.d_inner + channel) * kPast);
#pragma unroll
  for (int i = 0; i < kPast; ++i) past.words[i] = __ldcg(from + i);
  return past;
}

__device__ __forceinline__ ConvTaps load_taps(const mamba_layer_params& p, int channel) {
  ConvTaps taps;
#pragma unroll
  for (int j = 0; j < kFour; ++j) {
    taps.weights[j] =
        *reinterpret_cast<const float4*>(p.conv_weight + (int64_t{channel} + j) * kStepTaps);
  }
  taps.biases = *reinterpret_cast<const float4*>(p.conv_bias + channel);
  return taps;
}

// u, written too, as is the state.
template <typename T>
__device__ __forceinline__ Pack<T, kFour> convolve_four(const BatchToken& s, int row, int channel,
                                                        const Pack<T, kFour>& x,
                                                        const ConvPast<T>& past,
                                                        const ConvTaps& taps) {
  const int64_t index = int64_t{row} * s.layer.d_inner + channel;
  const float bias[kFour] = {taps.biases.x, taps.biases.y, taps.biases.z, taps.biases.w};
  ConvPast<T> last;
  Pack<T, kFour> u;
#pragma unroll
  for (int j = 0; j < kFour; ++j) {
    const float4& w = taps.weights[j];
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
  auto* to =
      reinterpret_cast<Pack<T, kFour>*>(static_cast<T*>(s.layer.last_conv_state) + index * kPast);
#pragma unroll
  for (int i = 0; i < kPast; ++i) to[i] = last.packs[i];
  *reinterpret_cast<Pack<T, kFour>*>(static_cast<T*>(s.parts.u) + index) = u;
  return u;
}

// The block's kThreads threads: sums (Rows, width) = u (Rows, apart(Channels)) times weights
// (Channels, stride), of which the first `rows` are wanted. Of weights a half tile beyond the last
// column may be read.
template <typename T, int Channels, int Rows>
__device__ __forceinline__ void multiply_x_proj(const T* u, const T* weights, int stride, int width,
                                                int rows, float* sums) {
  constexpr int kRowTiles = Rows / 16, kColumnWarps = kWarps / kRowTiles;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int tile_row = warp % kRowTiles * 16;
  if (tile_row >= rows) return;
  const uint32_t left_address =
      shared_address(u + (tile_row + lane % 16) * apart(Channels) + lane / 16 * kVector);
  const uint32_t right_address = shared_address(weights + lane % 16 * stride + lane / 16 * kVector);
#pragma unroll 1
  for (int column = warp / kRowTiles * 16; column < width; column += kColumnWarps * 16) {
    float sum[2][4] = {};
#pragma unroll 4
    for (int k = 0; k < Channels; k += 16) {
      uint32_t left[4], right[4];
      load_tiles(left_address + 2 * k, left);
      load_tiles_transposed(right_address + 2 * (k * stride + column), right);
      multiply_add<T>(sum[0], left, right[0], right[1]);
      multiply_add<T>(sum[1], left, right[2], right[3]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = column + half * 8 + lane % 4 * 2;
      if (own >= width) continue;
      float* to = sums + (tile_row + lane / 4) * width + own;
      *reinterpret_cast<float2*>(to) = make_float2(sum[half][0], sum[half][1]);
      *reinterpret_cast<float2*>(to + 8 * width) = make_float2(sum[half][2], sum[half][3]);
    }
  }
}

// The block's first kThreads threads, between two barriers of the cluster: adds up the sums of its
// blocks, of `rows` rows from first_row on, some rows a block, and writes the cluster's share.
__device__ __forceinline__ void add_up_shares(const BatchToken& s, const float* sums, int first_row,
                                              int rows) {
  const int own_rows = (rows + kBatchCluster - 1) / kBatchCluster;
  const int block = blockIdx.x % kBatchCluster;
  const int end = min(rows, (block + 1) * own_rows) * s.width;
  float* share =
      s.parts.shares + (int64_t{blockIdx.x / kBatchCluster} * s.rows + first_row) * s.width;
#pragma unroll 1
  for (int i = block * own_rows * s.width + threadIdx.x * kFour; i < end; i += kThreads * kFour) {
    *reinterpret_cast<float4*>(share + i) = sum_over_blocks(sums + i, kBatchCluster);
  }
}

}  // namespace batch
}  // namespace mamba
