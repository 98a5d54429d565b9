// The convolution of one step, with SiLU and its state, for a kernel that has just made its
// columns.
#pragma once

#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"

namespace mamba {

constexpr int kStepTaps = 4;  // d_conv, as Mamba's models have it

// A convolution of one step over the columns from `first` on; y is null where there is none.
struct OneStepConv {
  const float* weight;  // (columns, kStepTaps)
  const float* bias;
  const void* past;  // (rows, columns, kStepTaps - 1)
  void *y, *last;
  int first, columns;
  bool silu;
};

// Brings the states and weights of a block's Channels channels into the L2 cache: allowed before
// the wait for earlier kernels.
template <typename T, int Channels, int Threads>
__device__ __forceinline__ void prefetch_states(const OneStepConv& c, int rows, int first_channel) {
  constexpr int kLineNumbers = 128 / sizeof(T);
  constexpr int kNumbers = Channels * (kStepTaps - 1), kLines = kNumbers / kLineNumbers + 1;
  for (int i = threadIdx.x; i < rows * kLines; i += Threads) {
    const int channel = max(first_channel, 0) + i % kLines * kLineNumbers / (kStepTaps - 1);
    if (channel >= c.columns) continue;
    const int64_t at = (int64_t{i / kLines} * c.columns + channel) * (kStepTaps - 1);
    prefetch(static_cast<const T*>(c.past) + at);
  }
  constexpr int kLineFloats = 128 / sizeof(float);
  for (int i = threadIdx.x; i < Channels * kStepTaps / kLineFloats; i += Threads) {
    const int channel = max(first_channel, 0) + i * kLineFloats / kStepTaps;
    if (channel >= c.columns) continue;
    prefetch(c.weight + int64_t{channel} * kStepTaps);
    if (i % kStepTaps == 0) prefetch(c.bias + channel);
  }
}

// One step of one channel of a sequence.
template <typename T>
__device__ __forceinline__ void convolve(const OneStepConv& c, int row, int channel, T x) {
  const int64_t index = int64_t{row} * c.columns + channel;
  const T* past = static_cast<const T*>(c.past) + index * (kStepTaps - 1);
  const float4 w = *reinterpret_cast<const float4*>(c.weight + int64_t{channel} * kStepTaps);
  const T steps[kStepTaps] = {past[0], past[1], past[2], x};
  const float weight[kStepTaps] = {w.x, w.y, w.z, w.w};
  float sum = c.bias[channel];
#pragma unroll
  for (int k = 0; k < kStepTaps; ++k) sum += weight[k] * to_float(steps[k]);
  static_cast<T*>(c.y)[index] = from_float<T>(c.silu ? silu<T>(sum) : sum);
  T* last = static_cast<T*>(c.last) + index * (kStepTaps - 1);
#pragma unroll
  for (int k = 1; k < kStepTaps; ++k) last[k - 1] = steps[k];
}

}  // namespace mamba
