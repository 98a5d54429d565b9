// What a block of a layer's first kernel adds to the product after it, from the channels that it
// has just made itself: one kernel, and its start, less in a step.
#pragma once

#include "layer/cuda/gemv.cuh"

namespace mamba {

// The share of `Channels` rows of W (channels, columns) in u W, of one row of u. T: dtype of W,
// whose rows are read 16 bytes at a time.
template <typename T, int Channels, int Threads>
class NextShare {
 public:
  static constexpr int kWidth = 16 / sizeof(T);  // columns a thread
  static constexpr int kSharedFloats = Threads * kWidth;

  __device__ NextShare(const T* weights, int first_channel, int columns)
      : weights_(weights + static_cast<int64_t>(first_channel) * columns),
        columns_(columns),
        groups_(Threads / (columns / kWidth)),
        column_(static_cast<int>(threadIdx.x) % (columns / kWidth) * kWidth),
        group_(static_cast<int>(threadIdx.x) / (columns / kWidth)) {}

  // Brings the rows into the L2 cache: allowed before the wait for earlier kernels. Registers are
  // the product's until it ends.
  __device__ void prefetch_weights() const {
    const char* rows = reinterpret_cast<const char*>(weights_);
    const int bytes = Channels * columns_ * static_cast<int>(sizeof(T));
    for (int at = threadIdx.x * kLineBytes; at < bytes; at += Threads * kLineBytes) {
      prefetch(rows + at);
    }
  }

  // Starts the first loads of W.
  __device__ void start() {
#pragma unroll
    for (int i = 0; i < kEarly; ++i) {
      const int channel = group_ + i * groups_;
      if (group_ < groups_ && channel < Channels) early_[i] = load(channel);
    }
  }

  // shares (columns) = the share, from u (Channels) in shared memory; partial has kSharedFloats
  // there. Every thread of the block must call it.
  __device__ void finish(const float* u, float* partial, float* shares) const {
    float sum[kWidth] = {};
    if (group_ < groups_) {
#pragma unroll
      for (int i = 0; i < kEarly; ++i) {
        const int channel = group_ + i * groups_;
        if (channel < Channels) add(u[channel], early_[i], sum);
      }
      for (int channel = group_ + kEarly * groups_; channel < Channels; channel += groups_) {
        add(u[channel], load(channel), sum);
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) partial[group_ * columns_ + column_ + j] = sum[j];
    }
    __syncthreads();
    for (int column = threadIdx.x; column < columns_; column += Threads) {
      float total = 0.f;
#pragma unroll 8
      for (int group = 0; group < groups_; ++group) total += partial[group * columns_ + column];
      shares[column] = total;
    }
  }

 private:
  static constexpr int kEarly = 4;  // rows of W that a thread asks for at once
  static constexpr int kLineBytes = 128;

  __device__ __forceinline__ uint4 load(int channel) const {
    return load_weights(weights_ + static_cast<int64_t>(channel) * columns_ + column_);
  }
  __device__ __forceinline__ static void add(float u, const uint4& w, float (&sum)[kWidth]) {
    const Pack<T, kWidth>& values = reinterpret_cast<const Pack<T, kWidth>&>(w);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum[j] = fmaf(u, to_float(values.values[j]), sum[j]);
  }

  const T* const weights_;
  const int columns_, groups_, column_, group_;
  uint4 early_[kEarly];
};

}  // namespace mamba
