// The last kernel of a layer's step: the gated norm where the layer has one, out_proj, and the sum.
#pragma once

#include "layer/cuda/gemv.cuh"
#include "layer/cuda/launch.cuh"
#include "layer/cuda/normalise.cuh"
#include "layer/cuda/packed_gemv.cuh"
#include "layer/cuda/ring_gemv.cuh"

namespace mamba {
namespace step {

// Few rows that need no norm: y rides along with the weights in registers.
template <typename T, int Rows, bool IsGated>
constexpr bool kEarlyY = !IsGated && Rows * sizeof(T) <= kMaxEarlyBytes;
template <typename T, int Rows, bool IsVector, bool IsGated>
using OutProduct = RowProduct<T, T, kOutProjBlock.columns, kOutProjBlock.threads, Rows, IsVector,
                              kEarlyY<T, Rows, IsGated>>;

// Calls body with the Choice of the product for these rows and this matrix. Every block computes
// the gated norm of all rows again, which is quick for the few rows of a step.
template <typename T, bool IsGated, typename Body>
auto with_out_product(const ProjectOut& s, Body body) {
  if (s.codes.bits) {
    constexpr PackedPlace kPlace = IsGated ? PackedPlace::kLastGated : PackedPlace::kLast;
    return with_packed_product<T, kPlace>(s.codes, s.rows, s.depth, s.columns, body);
  }
  const bool is_vector = has_vector_rows<T>(s.weight, s.columns);
  if (!is_vector) return body(Choice<OutProduct<T, kMaxStepRows, false, IsGated>>());
  if constexpr (sizeof(T) == 2) {
    if (takes_ring<T>(s.depth)) {
      // Of one row that needs no norm more warps are quicker: 370M 8.9 us a layer instead of 9.0,
      // 1.4B 24.3 instead of 24.7 (H100).
      if constexpr (!IsGated) {
        if (s.rows == 1) {
          return body(Choice<RingRowProduct<T, kOutProjBlock.columns, kOutProjBlock.threads,
                                            kRingBytes, 1>>());
        }
      }
      return with_ring_product<T, kOutProjBlock.columns>(s.rows, body);
    }
  }
  if (s.rows == 1) return body(Choice<OutProduct<T, 1, true, IsGated>>());
  if (s.rows <= kSomeStepRows) {
    return body(Choice<OutProduct<T, kSomeStepRows, true, IsGated>>());
  }
  return body(Choice<OutProduct<T, kMaxStepRows, true, IsGated>>());
}

// Parts of a block's shared memory, in bytes from its start.
template <typename Product, bool IsGated>
struct OutShared {
  static constexpr bool kCopiesY = IsGated || Product::kReadsShared;
  size_t y, norm_weight, partial, sums, bytes;

  __host__ __device__ OutShared(const ProjectOut& s, size_t element) {
    y = 0;
    norm_weight = y + (kCopiesY ? Product::kRows * Product::x_stride(s.depth) * element : 0);
    partial = norm_weight + (IsGated ? sizeof(float) * padded(s.depth) : 0);
    sums = partial + sizeof(float) * Product::kSharedFloats;
    bytes = sums;
    if (IsGated) {
      bytes += sizeof(float) * norm_sums<Product::kThreads>(Product::kRows, s.groups);
    }
  }
};

// The rows of y, Rows at most, in shared memory, 16 bytes at a time; depth is a multiple of so
// many. All rows are asked for before the first is stored.
template <int Threads, int Rows, typename T>
__device__ __forceinline__ void copy_rows(const T* y, int stride, int rows, int depth, T* x,
                                          int x_stride) {
  constexpr int kAtOnce = 16 / sizeof(T), kUnrolled = Rows == 1 ? 4 : 1;
#pragma unroll kUnrolled
  for (int i = threadIdx.x * kAtOnce; i < depth; i += Threads * kAtOnce) {
    uint4 values[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      if (r < rows) values[r] = *reinterpret_cast<const uint4*>(y + r * stride + i);
    }
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      if (r < rows) *reinterpret_cast<uint4*>(x + r * x_stride + i) = values[r];
    }
  }
}

template <typename T, typename Product, bool IsGated>
__global__ void __launch_bounds__(Product::kThreads) project_out(const ProjectOut s) {
  constexpr int kColumns = Product::kColumns, kThreads = Product::kThreads;
  static_assert(Product::kRows * kColumns <= kThreads);
  extern __shared__ __align__(128) unsigned char shared[];
  const OutShared<Product, IsGated> at(s, sizeof(T));
  float* partial = reinterpret_cast<float*>(shared + at.partial);
  T* x = reinterpret_cast<T*>(shared + at.y);
  const int x_stride = static_cast<int>(Product::x_stride(s.depth));
  const T* y = static_cast<const T*>(s.y);
  const int first = blockIdx.x * kColumns;
  constexpr bool kCopiesY = OutShared<Product, IsGated>::kCopiesY;
  Product product({s.weight, s.depth, s.columns, s.codes}, first, 0, s.depth, kCopiesY ? x : y,
                  kCopiesY ? x_stride : s.stride, kCopiesY ? Product::kRows : s.rows);
  float* norm_weight = reinterpret_cast<float*>(shared + at.norm_weight);
  if constexpr (IsGated) {
    start_norm_weight<kThreads>(s.gate_norm_weight, s.depth, s.reads_in_fours, norm_weight);
  }
  product.start_weights(partial);
  // Early, of codes too: 130M, int4, H100: a layer takes 8.0 us instead of 8.3.
  wait_and_let_next_start(true);
  product.start_x();
  if constexpr (kCopiesY && !IsGated)
    copy_rows<kThreads, Product::kRows>(y, s.stride, s.rows, s.depth, x, x_stride);
  const int r = threadIdx.x / kColumns, column = first + threadIdx.x % kColumns;
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
    const NormSizes sizes = {s.rows, s.depth, s.groups, x_stride, s.epsilon};
    if (s.reads_in_fours) {
      const GatedRows<T, kAtOnce> rows = {y, gate, s.stride, s.gate_stride};
      normalise<kThreads, Product::kRows, Product::kPendingCopies>(rows, norm_weight, sizes, x,
                                                                   sums);
    } else {
      const GatedRows<T, 1> rows = {y, gate, s.stride, s.gate_stride};
      normalise<kThreads, Product::kRows, Product::kPendingCopies>(rows, norm_weight, sizes, x,
                                                                   sums);
    }
  }
  if constexpr (kCopiesY && !IsGated) __syncthreads();
  product.finish(partial);
  if (!is_writer) return;
  const float sum = residual + partial[threadIdx.x];
  if (is_wide) {
    static_cast<float*>(s.hidden_out)[element] = sum;
  } else {
    static_cast<T*>(s.hidden_out)[element] = from_float<T>(sum);
  }
}

template <typename T, bool IsGated>
size_t out_shared_bytes(const ProjectOut& s) {
  return with_out_product<T, IsGated>(s, [&](auto choice) {
    return OutShared<chosen<decltype(choice)>, IsGated>(s, sizeof(T)).bytes;
  });
}

template <typename T, bool IsGated>
cudaError_t launch_out(const ProjectOut& s, cudaStream_t stream) {
  return with_out_product<T, IsGated>(s, [&](auto choice) {
    using Product = chosen<decltype(choice)>;
    return launch(project_out<T, Product, IsGated>, blocks_for(s.columns, Product::kColumns),
                  Product::kThreads, OutShared<Product, IsGated>(s, sizeof(T)).bytes, s, s.overlaps,
                  stream);
  });
}

}  // namespace step

template <typename T>
size_t project_out_shared_bytes(const ProjectOut& s) {
  return s.is_gated ? step::out_shared_bytes<T, true>(s) : step::out_shared_bytes<T, false>(s);
}

template <typename T>
cudaError_t launch_project_out(ProjectOut s, cudaStream_t stream) {
  using namespace step;
  if (!s.is_gated) return launch_out<T, false>(s, stream);
  s.reads_in_fours = s.depth / s.groups % kAtOnce == 0 &&
                     is_aligned<kAtOnce * sizeof(T)>(s.y, s.stride, sizeof(T)) &&
                     is_aligned<kAtOnce * sizeof(T)>(s.gate, s.gate_stride, sizeof(T)) &&
                     is_aligned<16>(s.gate_norm_weight, 0, sizeof(float));
  return launch_out<T, true>(s, stream);
}

}  // namespace mamba
