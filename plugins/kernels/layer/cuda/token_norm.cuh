// RMSNorm of one token of a few sequences by one block, into its shared memory: normalise.cuh in
// two halves, of which the first asks for numbers, and with few instructions.
#pragma once

#include "common/cuda/lanes.cuh"
#include "common/cuda/mma.cuh"
#include "common/cuda/numeric.cuh"
#include "layer/cuda/normalise.cuh"
#include "layer/cuda/step.cuh"

namespace mamba {
namespace step {

// Four numbers from i on of a vector of fp32, or of T; those beyond its end are 0. IsQuick: it is
// of fp32, and they may be read at once.
template <typename T, bool IsQuick = false>
struct FoursOf {
  const void* data;
  int width;
  bool is_wide, in_fours;

  __device__ __forceinline__ float4 at(int i) const {
    if (i >= width) return make_float4(0.f, 0.f, 0.f, 0.f);
    if (IsQuick || in_fours) {
      if (IsQuick || is_wide)
        return *reinterpret_cast<const float4*>(static_cast<const float*>(data) + i);
      const Pack<float, kAtOnce> four = widened<T, kAtOnce>(static_cast<const T*>(data) + i);
      return make_float4(four.values[0], four.values[1], four.values[2], four.values[3]);
    }
    return make_float4(one(i), one(i + 1), one(i + 2), one(i + 3));
  }
  __device__ __forceinline__ float one(int i) const {
    if (i >= width) return 0.f;
    return is_wide ? static_cast<const float*>(data)[i] : to_float(static_cast<const T*>(data)[i]);
  }
};

__device__ __forceinline__ float with_squares(float sum, const float4& v) {
  return fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, sum))));
}

template <typename T>
__device__ __forceinline__ void put_four_of(T* x, const float4& value, float scale,
                                            const float4& w) {
  const Pack<T, 4> four = {
      from_float<T>(value.x * scale * w.x), from_float<T>(value.y * scale * w.y),
      from_float<T>(value.z * scale * w.z), from_float<T>(value.w * scale * w.w)};
  *reinterpret_cast<Pack<T, 4>*>(x) = four;
}

// x = norm(hidden) of a row, zeros up to the stride; in two halves, before and after the wait. Of
// each thread Kept times four numbers wait in registers.
template <typename T, int Threads, int Kept, bool IsQuick>
class OneRowNorm {
 public:
  // sums: Threads / 32 numbers in shared memory.
  __device__ OneRowNorm(const ProjectIn& s, float* sums)
      : hidden_{s.hidden, s.d_model, s.hidden_dtype == MAMBA_FP32, s.reads_hidden_in_fours},
        weight_{s.norm_weight, s.d_model, true, s.reads_hidden_in_fours},
        epsilon_(s.epsilon),
        sums_(sums) {
#pragma unroll
    for (int n = 0; n < kKept; ++n) kept_weight_[n] = weight_.at(first() + n * kApart);
  }

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int n = 0; n < kKept; ++n) kept_[n] = hidden_.at(first() + n * kApart);
  }

  // Every thread must call it; x may be read then.
  __device__ __forceinline__ void finish(T* x, int x_stride) const {
    float square = 0.f;
#pragma unroll
    for (int n = 0; n < kKept; ++n) square = with_squares(square, kept_[n]);
#pragma unroll 1
    for (int i = first() + kKept * kApart; i < hidden_.width; i += kApart) {
      square = with_squares(square, hidden_.at(i));
    }
    square = warp_sum(square);
    if (threadIdx.x % 32 == 0) sums_[threadIdx.x / 32] = square;
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int warp = 0; warp < Threads / 32; ++warp) total += sums_[warp];
    const float scale = rsqrtf(total / hidden_.width + epsilon_);
#pragma unroll
    for (int n = 0; n < kKept; ++n) {
      put(x, x_stride, first() + n * kApart, kept_[n], scale, kept_weight_[n]);
    }
#pragma unroll 1
    for (int i = first() + kKept * kApart; i < x_stride; i += kApart) {
      put(x, x_stride, i, hidden_.at(i), scale, weight_.at(i));
    }
    __syncthreads();
  }

 private:
  static constexpr int kKept = Kept, kApart = Threads * 4;

  __device__ __forceinline__ static int first() { return static_cast<int>(threadIdx.x) * 4; }
  // The stride is a multiple of 8.
  __device__ __forceinline__ static void put(T* x, int x_stride, int i, const float4& value,
                                             float scale, const float4& w) {
    if (i < x_stride) put_four_of(x + i, value, scale, w);
  }

  const FoursOf<T, IsQuick> hidden_, weight_;
  const float epsilon_;
  float* const sums_;
  float4 kept_weight_[kKept], kept_[kKept];
};

// The same of several rows, a warp a row.
template <typename T, int Threads, int Rows, int Pending>
class RowsNorm {
 public:
  // weight: padded(d_model) numbers in shared memory.
  __device__ RowsNorm(const ProjectIn& s, float* weight)
      : s_(s), weight_(weight), is_quick_(s.hidden_dtype == MAMBA_FP32 && s.reads_hidden_in_fours) {
    start_norm_weight<Threads>(s.norm_weight, s.d_model, s.reads_hidden_in_fours, weight);
  }

  __device__ __forceinline__ void start() {
    if (is_quick_) keep(warp());
  }

  // x (Rows, stride). Every thread must call it; x may be read then.
  __device__ __forceinline__ void finish(T* x, int x_stride) {
    wait_for_copies_but<Pending>();
    __syncthreads();  // of the weight
#pragma unroll 1
    for (int row = warp(); row < Rows; row += Threads / 32) {
      if (is_quick_) {
        if (row != warp()) keep(row);
        normalise_row<true>(row, x + row * x_stride, x_stride);
      } else {
        normalise_row<false>(row, x + row * x_stride, x_stride);
      }
    }
    __syncthreads();
  }

 private:
  static constexpr int kKept = 10, kApart = 32 * 4;

  __device__ __forceinline__ static int warp() { return threadIdx.x / 32; }
  __device__ __forceinline__ static int first() { return threadIdx.x % 32 * 4; }
  __device__ __forceinline__ void keep(int row) {
#pragma unroll
    for (int n = 0; n < kKept; ++n) kept_[n] = hidden<true>(row, first() + n * kApart);
  }

  // IsQuick: rows of fp32 that are read in fours, the first kKept of which are kept. Few
  // instructions otherwise: each is read from memory.
  template <bool IsQuick>
  __device__ __forceinline__ void normalise_row(int row, T* x, int x_stride) {
    constexpr int kFirst = IsQuick ? kKept : 0, kUnroll = IsQuick ? kKept : 1;
    float square = 0.f;
#pragma unroll
    for (int n = 0; n < kFirst; ++n) square = with_squares(square, kept_[n]);
#pragma unroll kUnroll
    for (int i = first() + kFirst * kApart; i < s_.d_model; i += kApart) {
      square = with_squares(square, hidden<IsQuick>(row, i));
    }
    square = warp_sum(square);
    const float scale = rsqrtf(square / s_.d_model + s_.epsilon);
#pragma unroll
    for (int n = 0; n < kFirst; ++n) {
      const int i = first() + n * kApart;
      if (i < x_stride) put_four_of(x + i, kept_[n], scale, weight_of(i));
    }
#pragma unroll kUnroll
    for (int i = first() + kFirst * kApart; i < x_stride; i += kApart) {
      put_four_of(x + i, hidden<IsQuick>(row, i), scale, weight_of(i));
    }
  }

  __device__ __forceinline__ float4 weight_of(int i) const {
    return i < s_.d_model ? *reinterpret_cast<const float4*>(weight_ + i) : float4();
  }

  // Four numbers of a row; of one that does not exist they are 0.
  template <bool IsQuick>
  __device__ __forceinline__ float4 hidden(int row, int i) const {
    const bool is_wide = IsQuick || s_.hidden_dtype == MAMBA_FP32;
    const int64_t bytes = int64_t{row} * s_.d_model * (is_wide ? sizeof(float) : sizeof(T));
    const FoursOf<T> values = {static_cast<const char*>(s_.hidden) + bytes,
                               row < s_.rows ? s_.d_model : 0, is_wide,
                               IsQuick || s_.reads_hidden_in_fours};
    return values.at(i);
  }

  const ProjectIn& s_;
  float* const weight_;
  const bool is_quick_;
  float4 kept_[kKept];
};

}  // namespace step
}  // namespace mamba
