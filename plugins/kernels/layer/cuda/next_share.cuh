// What a block of a layer's first kernel adds to the product after it, from the channels that it
// has just made itself: one kernel, and its start, less in a step.
#pragma once

#include "common/cuda/mma.cuh"
#include "layer/cuda/gemv.cuh"

namespace mamba {

// The share of `Channels` rows of W (channels, columns) in u W, of one row of u. T: dtype of W,
// whose rows are read 16 bytes at a time.
template <typename T, int Channels, int Threads>
class NextShare {
 public:
  __device__ NextShare(const T* weights, int first_channel, int columns, unsigned char* shared)
      : weights_(weights + static_cast<int64_t>(first_channel) * columns),
        columns_(columns),
        groups_(min(Threads / (columns / kWidth), Channels / kEarly)),
        column_(static_cast<int>(threadIdx.x) % (columns / kWidth) * kWidth),
        group_(static_cast<int>(threadIdx.x) / (columns / kWidth)),
        u_(reinterpret_cast<float*>(shared)),
        partial_(u_ + Channels) {}

  // A thread of it has kWidth columns at most.
  __host__ __device__ static constexpr size_t shared_bytes(int) {
    return sizeof(float) * (Channels + Threads * kWidth);
  }

  // Starts the first loads of W: allowed before the wait for earlier kernels.
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < kEarly; ++i) {
      const int channel = group_ + i * groups_;
      if (group_ < groups_ && channel < Channels) early_[i] = load(channel);
    }
  }

  __device__ __forceinline__ void put(int channel, T u) { u_[channel] = to_float(u); }

  // shares (columns) = the share, of what was put, a barrier before. Every thread must call it.
  __device__ __forceinline__ void finish(float* shares) const {
    float sum[kWidth] = {};
    if (group_ < groups_) {
#pragma unroll
      for (int i = 0; i < kEarly; ++i) {
        const int channel = group_ + i * groups_;
        if (channel < Channels) add(u_[channel], early_[i], sum);
      }
      for (int channel = group_ + kEarly * groups_; channel < Channels; channel += groups_) {
        add(u_[channel], load(channel), sum);
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) partial_[group_ * columns_ + column_ + j] = sum[j];
    }
    __syncthreads();
    for (int column = threadIdx.x; column < columns_; column += Threads) {
      float total = 0.f;
#pragma unroll 8
      for (int group = 0; group < groups_; ++group) total += partial_[group * columns_ + column];
      shares[column] = total;
    }
  }

 private:
  static constexpr int kWidth = 16 / sizeof(T);  // columns a thread
  static constexpr int kEarly = 8;               // rows of W that a thread asks for at once

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
  float *const u_, *const partial_;
  uint4 early_[kEarly];
};

// The same on tensor cores, of 16 bits: W waits in shared memory, and a warp has 16 columns.
template <typename T, int Channels, int Threads>
class TensorNextShare {
 public:
  __device__ TensorNextShare(const T* weights, int first_channel, int columns,
                             unsigned char* shared)
      : weights_(weights + static_cast<int64_t>(first_channel) * columns),
        columns_(columns),
        u_(reinterpret_cast<T*>(shared)),
        rows_(shared + kRowsAt) {}

  // The last tile may read 16 bytes beyond the last row.
  __host__ __device__ static constexpr size_t shared_bytes(int columns) {
    return kRowsAt + static_cast<size_t>(Channels) * stride(columns) + 16;
  }

  __device__ __forceinline__ void start() {
    const int vectors = columns_ / 8;
#pragma unroll 1
    for (int i = threadIdx.x; i < Channels * vectors; i += Threads) {
      copy_async(rows_ + i / vectors * stride(columns_) + i % vectors * 16, weights_ + i * 8, true);
    }
    commit_copies();
  }

  __device__ __forceinline__ void put(int channel, T u) { u_[channel] = u; }

  // The barrier before it comes after every thread's wait for its copies.
  __device__ __forceinline__ void finish(float* shares) const {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int first = threadIdx.x / 32 * 16; first < columns_; first += Threads / 2) {
      float sum[4] = {};
      const uint32_t rows = shared_address(rows_) + first * 2 + lane / 8 % 2 * 16 +
                            (lane % 8 + lane / 16 * 8) * stride(columns_);
#pragma unroll
      for (int k = 0; k < Channels; k += 16) {
        const uint32_t* u = reinterpret_cast<const uint32_t*>(u_ + k) + lane % 4;
        uint32_t left[4];
        load_tiles_transposed(rows + k * stride(columns_), left);
        multiply_add<T>(sum, left, u[0], u[4]);
      }
      if (lane % 4 == 0) {
        const int column = first + lane / 4;
        shares[column] = sum[0];
        if (column + 8 < columns_) shares[column + 8] = sum[2];
      }
    }
  }

 private:
  static constexpr int kRowsAt = Channels * sizeof(T);
  static_assert(sizeof(T) == 2 && Channels % 16 == 0);

  // Bytes from row to row: an odd number of 16, so that eight rows lie in different banks.
  __host__ __device__ static constexpr int stride(int columns) { return (columns / 8 | 1) * 16; }

  const T* const weights_;
  const int columns_;
  T* const u_;
  unsigned char* const rows_;
};

}  // namespace mamba
