// GEMV for a few rows at once, as one token a sequence needs it: y = x W with W (depth, columns)
// row-major. Reading W once is all the time there is, so the code is about loads.
//
// A block owns Columns columns. kLanes threads lie side by side along a row of W, 16 bytes each;
// the block's kGroups such groups share out the depth, kGemvRun rows at a time. A thread keeps two
// runs in flight (16 loads of 16 bytes). Sums are fp32; groups are added up in a fixed order.
#pragma once

#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/block_sums.cuh"
#include "mamba_kernels.h"

namespace mamba {

// Every weight is read once: no room in L1 is spent on it. Volatile keeps the load where it is
// written, ahead of a wait. L2 fetches whole lines, whose other sectors neighbours are asking for.
__device__ __forceinline__ uint4 load_weights(const void* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

struct Matrix {
  const void* data;
  int depth, columns;
  mamba_codes codes;
};

constexpr bool kLateX = false;  // RowProduct's EarlyX

// T: dtype of W. X: dtype of x. IsVector: rows of W may be read 16 bytes at a time. EarlyX: x is
// read together with W (from global memory), else when it is needed (from shared memory).
template <typename T, typename X, int Columns, int Threads, int Rows, bool IsVector, bool EarlyX>
class RowProduct {
 public:
  static constexpr int kColumns = Columns, kThreads = Threads, kRows = Rows;
  static constexpr int kWidth = 16 / sizeof(T);  // columns a thread
  static constexpr int kLanes = Columns / kWidth;
  static constexpr int kGroups = Threads / kLanes;
  static constexpr int kStep = kGroups * kGemvRun;  // rows of W between two runs of a thread
  using Sums = BlockSums<kLanes, kWidth, Threads, Rows>;
  static constexpr int kSharedFloats = Sums::kSharedFloats;
  static constexpr int kPendingCopies = 0;     // groups of copies that start_weights leaves
  static constexpr bool kReadsShared = false;  // x must lie in shared memory
  static_assert(Columns % kWidth == 0);

  // The block's columns start at first_column; it adds up rows [first, last) of W. x has x_stride
  // elements a row, aligned to kGemvRun elements; row 0 of x belongs to row 0 of W. x has x_rows of
  // the compiled Rows: the results of the others are of no use.
  __device__ RowProduct(const Matrix& w, int first_column, int first, int last, const X* x,
                        int x_stride, int x_rows = Rows)
      : w_(w),
        x_(x),
        x_stride_(x_stride),
        last_x_row_(x_rows - 1),
        column_(first_column + static_cast<int>(threadIdx.x % kLanes) * kWidth),
        at_(first + static_cast<int>(threadIdx.x / kLanes) * kGemvRun),
        last_(last) {}

  __host__ __device__ static constexpr int64_t x_stride(int64_t width) {
    return (width + kGemvRun - 1) / kGemvRun * kGemvRun;
  }

  // Starts the first loads of W: allowed before the wait for earlier kernels. It takes what finish
  // does, for products that bring W there.
  __device__ void start_weights(float*) {
    load(even_, at_);
    load(odd_, at_ + kStep);
  }

  // Starts the loads of x that go with them.
  __device__ void start_x() {
    if constexpr (EarlyX) {
      load_x(even_, at_);
      load_x(odd_, at_ + kStep);
    }
  }

  // Adds up the rest. Every thread of the block must call it. The result lies in
  // partial[row * Columns + column], for every thread to read, after it returns.
  __device__ void finish(float* partial) {
    for (int k = at_; k < last_; k += 2 * kStep) {
      add(even_, k);
      load(even_, k + 2 * kStep);
      if constexpr (EarlyX) load_x(even_, k + 2 * kStep);
      add(odd_, k + kStep);
      load(odd_, k + 3 * kStep);
      if constexpr (EarlyX) load_x(odd_, k + 3 * kStep);
    }
    Sums::add_up(sum_, partial);
  }

 private:
  struct Run {
    uint4 w[kGemvRun];
    Pack<X, kGemvRun> x[EarlyX ? Rows : 1];
  };

  __device__ __forceinline__ void load(Run& run, int k) const {
    const T* weights = static_cast<const T*>(w_.data);
#pragma unroll
    for (int i = 0; i < kGemvRun; ++i) {
      const int64_t row = static_cast<int64_t>(k + i) * w_.columns;
      if constexpr (IsVector) {
        run.w[i] = make_uint4(0, 0, 0, 0);
        if (k + i < last_ && column_ < w_.columns) {
          run.w[i] = load_weights(weights + row + column_);
        }
      } else {
        Pack<T, kWidth> values;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const bool is_inside = k + i < last_ && column_ + j < w_.columns;
          values.values[j] = is_inside ? weights[row + column_ + j] : from_float<T>(0.f);
        }
        run.w[i] = *reinterpret_cast<const uint4*>(&values);
      }
    }
  }

  __device__ __forceinline__ Pack<X, kGemvRun> x_values(int row, int k) const {
    // A row beyond the last would lie beyond the end of x.
    const int there = row == 0 ? 0 : min(row, last_x_row_);
    const X* x = x_ + static_cast<int64_t>(there) * x_stride_ + k;
    if (k + kGemvRun <= last_) return *reinterpret_cast<const Pack<X, kGemvRun>*>(x);
    Pack<X, kGemvRun> values;
#pragma unroll
    for (int i = 0; i < kGemvRun; ++i) values.values[i] = k + i < last_ ? x[i] : from_float<X>(0.f);
    return values;
  }

  __device__ __forceinline__ void load_x(Run& run, int k) const {
#pragma unroll
    for (int r = 0; r < Rows; ++r) run.x[r] = x_values(r, k);
  }

  __device__ __forceinline__ void add(const Run& run, int k) {
    if (k >= last_) return;
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      Pack<X, kGemvRun> x;
      if constexpr (EarlyX) {
        x = run.x[r];
      } else {
        x = x_values(r, k);
      }
#pragma unroll
      for (int i = 0; i < kGemvRun; ++i) {
        const float factor = to_float(x.values[i]);
        const Pack<T, kWidth>& w = reinterpret_cast<const Pack<T, kWidth>&>(run.w[i]);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          sum_[r][j] = fmaf(factor, to_float(w.values[j]), sum_[r][j]);
        }
      }
    }
  }

  const Matrix w_;
  const X* const x_;
  const int x_stride_, last_x_row_, column_, at_, last_;
  Run even_, odd_;
  float sum_[Rows][kWidth] = {};
};

}  // namespace mamba
