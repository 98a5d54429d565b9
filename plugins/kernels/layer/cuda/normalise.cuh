// RMSNorm of a few rows by one block, into its shared memory: what a matrix is then multiplied by.
#pragma once

#include "common/cuda/lanes.cuh"
#include "common/cuda/mma.cuh"
#include "common/cuda/numeric.cuh"
#include "layer/cuda/step.cuh"

namespace mamba {
namespace step {

constexpr int kAtOnce = 4;  // numbers of a row that a thread reads, where they are aligned

template <typename T, int Width>
__device__ __forceinline__ Pack<float, Width> widened(const T* data) {
  const Pack<T, Width> narrow = *reinterpret_cast<const Pack<T, Width>*>(data);
  Pack<float, Width> wide;
#pragma unroll
  for (int i = 0; i < Width; ++i) wide.values[i] = to_float(narrow.values[i]);
  return wide;
}

// The rows of a residual stream.
template <typename R, int Width>
struct HiddenRows {
  static constexpr int kWidth = Width;
  static constexpr bool kHasGroups = false;
  const R* hidden;
  int stride;
  __device__ Pack<float, Width> at(int row, int i) const {
    return widened<R, Width>(hidden + static_cast<int64_t>(row) * stride + i);
  }
};

// Rows of y with their gate: y silu(z).
template <typename T, int Width>
struct GatedRows {
  static constexpr int kWidth = Width;
  static constexpr bool kHasGroups = true;
  const T* y;
  const T* z;
  int y_stride, z_stride;
  __device__ Pack<float, Width> at(int row, int i) const {
    Pack<float, Width> value = widened<T, Width>(y + static_cast<int64_t>(row) * y_stride + i);
    const Pack<float, Width> gate = widened<T, Width>(z + static_cast<int64_t>(row) * z_stride + i);
#pragma unroll
    for (int j = 0; j < Width; ++j) value.values[j] *= silu<T>(gate.values[j]);
    return value;
  }
};

struct NormSizes {
  int rows, width, groups;  // each group of width / groups numbers has a mean of its own
  int stride;               // between rows of the result
  float epsilon;
};

// Numbers of fp32 that normalise takes for its sums.
template <int Threads>
__host__ __device__ constexpr int64_t norm_sums(int rows, int groups) {
  return int64_t{Threads} / 32 * rows * groups;
}

// Starts the copy of a norm's weight to shared memory, a group of copies: allowed before the wait
// for earlier kernels. normalise waits for it, but not for Pending groups that were queued after
// it.
template <int Threads>
__device__ __forceinline__ void start_norm_weight(const float* weight, int width, bool in_fours,
                                                  float* copy) {
#ifdef MAMBA_HAVE_MMA
  if (in_fours) {
    for (int i = threadIdx.x * 4; i < width; i += Threads * 4) {
      copy_async(copy + i, weight + i, true);
    }
    commit_copies();
    return;
  }
#endif
  for (int i = threadIdx.x; i < width; i += Threads) copy[i] = weight[i];
}

// x (Rows, stride) = norm(source), zeros beyond what there is; weight lies in shared memory. Every
// thread must call it.
template <int Threads, int Rows, int Pending = 0, typename T, typename Source>
__device__ void normalise(const Source& source, const float* weight, const NormSizes& n, T* x,
                          float* sums) {
  constexpr int kWarps = Threads / 32, kWidth = Source::kWidth, kStep = Threads * kWidth;
  const int groups = Source::kHasGroups ? n.groups : 1, width = n.width / groups;
  const int x_stride = n.stride, start = threadIdx.x * kWidth;
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    for (int group = 0; group < groups; ++group) {
      float square = 0.f;
      if (r < n.rows) {
#pragma unroll 4
        for (int i = start; i < width; i += kStep) {
          const Pack<float, kWidth> value = source.at(r, group * width + i);
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
            square = fmaf(value.values[j], value.values[j], square);
          }
        }
      }
      square = warp_sum(square);
      if (threadIdx.x % 32 == 0) sums[(group * kWarps + threadIdx.x / 32) * Rows + r] = square;
    }
  }
  wait_for_copies_but<Pending>();
  __syncthreads();
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    for (int group = 0; group < groups; ++group) {
      float square = 0.f;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) square += sums[(group * kWarps + warp) * Rows + r];
      const float scale = 1.f / sqrtf(square / width + n.epsilon);
#pragma unroll 4
      for (int i = start; i < width; i += kStep) {
        const int at = group * width + i;
        Pack<T, kWidth> result = {};
        if (r < n.rows) {
          const Pack<float, kWidth> value = source.at(r, at);
          const Pack<float, kWidth> w = widened<float, kWidth>(weight + at);
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
            result.values[j] = from_float<T>(value.values[j] * scale * w.values[j]);
          }
        }
        *reinterpret_cast<Pack<T, kWidth>*>(x + r * x_stride + at) = result;
      }
    }
    for (int i = n.width + threadIdx.x; i < x_stride; i += Threads) {
      x[r * x_stride + i] = from_float<T>(0.f);
    }
  }
  __syncthreads();
}

// The same of several rows without groups, a warp a row, so that rows are read at once.
template <int Threads, int Rows, int Pending = 0, typename T, typename Source>
__device__ void normalise_by_warps(const Source& source, const float* weight, const NormSizes& n,
                                   T* x) {
  constexpr int kWarps = Threads / 32, kWidth = Source::kWidth, kStep = 32 * kWidth;
  constexpr int kLoads = 32 / kWidth;  // of a lane at a time
  const int start = threadIdx.x % 32 * kWidth;
  wait_for_copies_but<Pending>();
  __syncthreads();  // of the weight
  for (int row = threadIdx.x / 32; row < Rows; row += kWarps) {
    const bool exists = row < n.rows;
    float square = 0.f;
    for (int first = start; exists && first < n.width; first += kLoads * kStep) {
      Pack<float, kWidth> values[kLoads] = {};
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        const int i = first + load * kStep;
        if (i < n.width) values[load] = source.at(row, i);
      }
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          square = fmaf(values[load].values[j], values[load].values[j], square);
        }
      }
    }
    square = warp_sum(square);
    const float scale = 1.f / sqrtf(square / n.width + n.epsilon);
    T* result = x + row * n.stride;
#pragma unroll 4
    for (int i = start; i < n.width; i += kStep) {
      Pack<T, kWidth> normed = {};
      if (exists) {
        const Pack<float, kWidth> value = source.at(row, i);
        const Pack<float, kWidth> w = widened<float, kWidth>(weight + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          normed.values[j] = from_float<T>(value.values[j] * scale * w.values[j]);
        }
      }
      *reinterpret_cast<Pack<T, kWidth>*>(result + i) = normed;
    }
    for (int i = n.width + threadIdx.x % 32; i < n.stride; i += 32) result[i] = from_float<T>(0.f);
  }
  __syncthreads();
}

}  // namespace step
}  // namespace mamba
