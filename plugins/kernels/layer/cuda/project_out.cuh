// The last kernel of a layer's step: the gated norm where the layer has one, out_proj, and the sum.
#pragma once

#include "layer/cuda/gemv.cuh"
#include "layer/cuda/launch.cuh"
#include "layer/cuda/normalise.cuh"

namespace mamba {
namespace step {

constexpr int kOutColumns = kOutProjBlock.columns, kOutThreads = kOutProjBlock.threads;
constexpr int kNormLine = 32;  // numbers of fp32 in a line of the L2 cache

// Few rows that need no norm: y rides along with the weights in registers.
template <typename T, int Rows, bool IsGated>
constexpr bool kEarlyY = !IsGated && Rows * sizeof(T) <= kMaxEarlyBytes;
template <typename T, int Rows, bool IsVector, bool IsGated>
using OutProduct =
    RowProduct<T, T, kOutColumns, kOutThreads, Rows, IsVector, kEarlyY<T, Rows, IsGated>>;

// Parts of a block's shared memory, in bytes from its start.
struct OutShared {
  size_t partial, y, sums, bytes;

  __host__ __device__ OutShared(const ProjectOut& s, int rows, size_t element) {
    partial = 0;
    y = partial + sizeof(float) * (kOutThreads / 32) * rows * kOutColumns;
    const bool is_gated = s.gate != nullptr;
    sums = y + (is_gated ? rows * padded(s.depth) * element : 0);
    bytes = sums + (is_gated ? sizeof(float) * norm_sums<kOutThreads>(rows, s.groups) : 0);
  }
};

template <typename T, int Rows, bool IsVector, bool IsGated>
__global__ void __launch_bounds__(kOutThreads) project_out(const ProjectOut s) {
  using Product = OutProduct<T, Rows, IsVector, IsGated>;
  static_assert(Rows * kOutColumns <= kOutThreads);
  extern __shared__ __align__(128) unsigned char shared[];
  const OutShared at(s, Rows, sizeof(T));
  float* partial = reinterpret_cast<float*>(shared + at.partial);
  T* normed = reinterpret_cast<T*>(shared + at.y);  // (Rows, padded depth)
  const T* y = static_cast<const T*>(s.y);
  const int first = blockIdx.x * kOutColumns;
  Product product({s.weight, s.depth, s.columns}, first, 0, s.depth, IsGated ? normed : y,
                  IsGated ? static_cast<int>(padded(s.depth)) : s.stride);
  product.start_weights();
  if constexpr (IsGated) {
    for (int i = threadIdx.x * kNormLine; i < s.depth; i += kOutThreads * kNormLine) {
      prefetch(s.gate_norm_weight + i);
    }
  }
  let_next_kernel_start();
  wait_for_earlier_kernels();
  product.start_x();
  const int r = threadIdx.x / kOutColumns, column = first + threadIdx.x % kOutColumns;
  const bool is_writer = r < s.rows && column < s.columns;
  const int64_t element = static_cast<int64_t>(r) * s.columns + column;
  const bool is_wide = s.hidden_dtype == MAMBA_FP32;
  float residual = 0.f;
  if (is_writer) {
    residual = is_wide ? static_cast<const float*>(s.hidden)[element]
                       : to_float(static_cast<const T*>(s.hidden)[element]);
  }
  if constexpr (IsGated) {
    float* sums = reinterpret_cast<float*>(shared + at.sums);
    const T* gate = static_cast<const T*>(s.gate);
    const NormSizes sizes = {s.rows, s.depth, s.groups, s.epsilon};
    if (s.reads_in_fours) {
      const GatedRows<T, kAtOnce> rows = {y, gate, s.stride, s.gate_stride};
      normalise<kOutThreads, Rows>(rows, s.gate_norm_weight, sizes, normed, sums);
    } else {
      const GatedRows<T, 1> rows = {y, gate, s.stride, s.gate_stride};
      normalise<kOutThreads, Rows>(rows, s.gate_norm_weight, sizes, normed, sums);
    }
  }
  product.finish(partial);
  if (!is_writer) return;
  const float sum = residual + partial[threadIdx.x];
  if (is_wide) {
    static_cast<float*>(s.hidden_out)[element] = sum;
  } else {
    static_cast<T*>(s.hidden_out)[element] = from_float<T>(sum);
  }
}

template <bool IsGated>
struct ProjectOutKernels {
  template <typename T, int Rows, bool IsVector>
  struct Kernel {
    static auto function() { return &project_out<T, Rows, IsVector, IsGated>; }
  };
};

}  // namespace step

template <typename T>
size_t project_out_shared_bytes(const ProjectOut& s) {
  const bool is_vector = step::has_vector_rows<T>(s.weight, s.columns);
  return step::OutShared(s, step::compiled_rows(s.rows, is_vector), sizeof(T)).bytes;
}

template <typename T>
cudaError_t launch_project_out(ProjectOut s, cudaStream_t stream) {
  using namespace step;
  s.reads_in_fours = s.gate && s.depth / s.groups % kAtOnce == 0 &&
                     is_aligned<kAtOnce * sizeof(T)>(s.y, s.stride, sizeof(T)) &&
                     is_aligned<kAtOnce * sizeof(T)>(s.gate, s.gate_stride, sizeof(T)) &&
                     is_aligned<16>(s.gate_norm_weight, 0, sizeof(float));
  const bool is_vector = has_vector_rows<T>(s.weight, s.columns);
  const auto kernel = s.gate
                          ? pick<ProjectOutKernels<true>::template Kernel, T>(s.rows, is_vector)
                          : pick<ProjectOutKernels<false>::template Kernel, T>(s.rows, is_vector);
  return launch(kernel, blocks_for(s.columns, kOutColumns), kOutThreads,
                project_out_shared_bytes<T>(s), s, s.overlaps, stream);
}

}  // namespace mamba
