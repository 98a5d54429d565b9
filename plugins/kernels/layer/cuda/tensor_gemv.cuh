// The product of gemv.cuh on tensor cores (sm_80 and later, 16-bit T): y = x W of up to 8 rows for
// the time that reading W takes, where CUDA cores would be busy for longer.
//
// A block owns Columns columns; its warps share out the depth, kStageRows rows of W at a time. Each
// warp keeps kStages such stages on their way to shared memory, and nothing but the last sum makes
// it wait for others. A stage is the left factor transposed, x the right one: of every product
// (16 columns of W) x (8 rows of x), the tensor cores' own shape.
#pragma once

#include "common/cuda/mma.cuh"
#include "common/cuda/numeric.cuh"
#include "layer/cuda/gemv.cuh"

namespace mamba {

template <typename T, int Columns, int Threads, int Stages>
class TensorProduct {
 public:
  static constexpr int kColumns = Columns, kThreads = Threads, kRows = 8;
  static constexpr int kWarps = Threads / 32;
  static constexpr int kSharedFloats = kWarps * kRows * Columns;
  static constexpr int kStages = Stages;
  static constexpr int kStageNumbers = 1024, kStageRows = kStageNumbers / Columns;
  static constexpr int kStageBytes = kWarps * kStages * kStageNumbers * int{sizeof(T)};
  static_assert(sizeof(T) == 2 && Columns % 16 == 0 && kStageRows % 16 == 0);

  // Numbers between rows of x: zeros up to a multiple of 16, and an odd number of 16 bytes, so that
  // the eight rows that a warp reads at once lie in different banks.
  __host__ __device__ static constexpr int64_t x_stride(int64_t width) {
    return (width + 15) / 16 * 16 + 8;
  }

  // The block's columns start at first_column. x lies in shared memory, in kRows rows of
  // x_stride(depth); stages are kStageBytes there, aligned to 128 bytes. Rows of W are read 16
  // bytes at a time.
  __device__ TensorProduct(const Matrix& w, int first_column, const T* x, int, void* stages)
      : w_(w),
        x_(x),
        first_column_(first_column),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        stages_(static_cast<T*>(stages) + warp_ * kStages * kStageNumbers) {}

  // Starts the first loads of W: allowed before the wait for earlier kernels.
  __device__ void start_weights() {
#pragma unroll
    for (int i = 0; i < kStages; ++i) load(i);
  }

  __device__ void start_x() const {}

  // Adds up. Every thread of the block must call it. The result lies in
  // partial[row * Columns + column], for every thread to read, after it returns.
  __device__ void finish(float* partial) {
    const int turns = (w_.depth + kStageRows * kWarps - 1) / (kStageRows * kWarps);
    for (int i = 0; i < turns; ++i) {
      wait_for_oldest();
      __syncwarp();  // the other lanes' copies too
      if (first_row(i) < w_.depth) add(i);
      __syncwarp();
      load(i + kStages);
    }
    wait_for_copies();
    reduce(partial);
  }

 private:
  static constexpr int kVector = 8;  // numbers of 16 bytes
  static constexpr int kRowVectors = Columns / kVector;

  // Of W, of a warp's turn.
  __device__ __forceinline__ int first_row(int turn) const {
    return (turn * kWarps + warp_) * kStageRows;
  }

  // Where a stage holds 16 bytes of a row of W: within 128 bytes their order depends on the line,
  // so that eight rows of one column lie in different banks.
  __device__ __forceinline__ T* place(int turn, int row, int vector) const {
    const int at = row * kRowVectors + vector, line = at / 8;
    return stages_ + (turn % kStages) * kStageNumbers +
           (line * 8 + ((at % 8) ^ (line % 8))) * kVector;
  }

  __device__ __forceinline__ void load(int turn) const {
    const T* weights = static_cast<const T*>(w_.data);
    const int first = first_row(turn);
#pragma unroll
    for (int i = lane_; i < kStageNumbers / kVector; i += 32) {
      const int row = i / kRowVectors, vector = i % kRowVectors;
      const int column = first_column_ + vector * kVector;
      const bool exists = first + row < w_.depth && column < w_.columns;
      const int64_t at = static_cast<int64_t>(first + row) * w_.columns + column;
      copy_async(place(turn, row, vector), exists ? weights + at : weights, exists);
    }
#ifdef MAMBA_HAVE_MMA
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }

  __device__ __forceinline__ static void wait_for_oldest() {
#ifdef MAMBA_HAVE_MMA
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
#endif
  }

  __device__ __forceinline__ void add(int turn) {
    const int stride = static_cast<int>(x_stride(w_.depth));
    const T* x = x_ + lane_ / 4 * stride + first_row(turn) + lane_ % 4 * 2;
#pragma unroll
    for (int k = 0; k < kStageRows; k += 16) {
      if (first_row(turn) + k >= w_.depth) break;  // x has no more zeros there
      const uint32_t low = *reinterpret_cast<const uint32_t*>(x + k);
      const uint32_t high = *reinterpret_cast<const uint32_t*>(x + k + 8);
#pragma unroll
      for (int tile = 0; tile < Columns / 16; ++tile) {
        // Tiles of 8 by 8: columns 0 to 7 and 8 to 15 of rows k to k + 7, then of the next eight.
        const int row = k + lane_ / 16 * 8 + lane_ % 8, vector = tile * 2 + lane_ / 8 % 2;
        uint32_t left[4];
        load_tiles_transposed(place(turn, row, vector), left);
        multiply_add<T>(sum_[tile], left, low, high);
      }
    }
  }

  __device__ __forceinline__ void reduce(float* partial) {
    const int row = lane_ % 4 * 2, column = lane_ / 4;
#pragma unroll
    for (int tile = 0; tile < Columns / 16; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row + i % 2, c = tile * 16 + column + i / 2 * 8;
        partial[(warp_ * kRows + r) * Columns + c] = sum_[tile][i];
      }
    }
    add_up_warps<kWarps, kRows * Columns, Threads>(partial);
  }

  const Matrix w_;
  const T* const x_;
  const int first_column_, lane_, warp_;
  T* const stages_;
  float sum_[Columns / 16][4] = {};
};

}  // namespace mamba
