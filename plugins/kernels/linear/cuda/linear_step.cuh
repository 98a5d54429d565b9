// The product of a few rows with a matrix of codes, in one kernel: what a token's logits take.
#pragma once

#include "layer/cuda/packed_gemv.cuh"
#include "layer/cuda/project_out.cuh"

namespace mamba {

struct LinearStep {
  const void* x;       // (rows, depth) T
  const void* weight;  // (depth, columns) codes
  void* y;             // (rows, columns) T
  int rows, depth, columns;
  mamba_codes codes;
  bool overlaps;  // it may start before the kernel ahead of it has ended
};

namespace step {

// Bytes of a block's x, where the product reads it in shared memory; sums and weights follow.
template <typename T, typename Product>
__host__ __device__ size_t linear_x_bytes(const LinearStep& s) {
  return Product::kReadsShared ? Product::kRows * Product::x_stride(s.depth) * sizeof(T) : 0;
}

template <typename T, typename Product>
__global__ void __launch_bounds__(Product::kThreads) multiply_codes(const LinearStep s) {
  constexpr int kColumns = Product::kColumns, kThreads = Product::kThreads;
  constexpr int kRows = Product::kRows;
  extern __shared__ __align__(128) unsigned char shared[];
  T* x = reinterpret_cast<T*>(shared);
  float* partial = reinterpret_cast<float*>(shared + linear_x_bytes<T, Product>(s));
  const int x_stride = static_cast<int>(Product::x_stride(s.depth));
  const T* given = static_cast<const T*>(s.x);
  const int first = blockIdx.x * kColumns;
  constexpr bool kCopiesX = Product::kReadsShared;
  Product product({s.weight, s.depth, s.columns, s.codes}, first, 0, s.depth, kCopiesX ? x : given,
                  kCopiesX ? x_stride : s.depth, kCopiesX ? kRows : s.rows);
  product.start_weights(partial);
  wait_and_let_next_start(false);
  product.start_x();
  if constexpr (kCopiesX) {
    copy_rows<kThreads, kRows>(given, s.depth, s.rows, s.depth, x, x_stride);
    __syncthreads();
  }
  product.finish(partial);
  T* y = static_cast<T*>(s.y);
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int r = i / kColumns, column = first + i % kColumns;
    if (r < s.rows && column < s.columns) {
      y[static_cast<int64_t>(r) * s.columns + column] = from_float<T>(partial[i]);
    }
  }
}

// Calls body with the Choice of the product of these rows with a matrix that step_takes allows.
template <typename T, typename Body>
auto with_linear_product(const LinearStep& s, Body body) {
  const auto of_bits = [&](auto bits) {
    constexpr int kBits = decltype(bits)::value;
    if constexpr (std::is_same_v<T, __half>) {
      if (multiplies_on_tensor_cores(MAMBA_FP16)) {
        return with_chunk(kBits, s.columns, [&](auto chunk) {
          constexpr int kChunk = decltype(chunk)::value;
          constexpr int kColumns = kLinearBlock.columns, kThreads = kLinearBlock.threads;
          if (s.rows == 1) {
            return body(
                Choice<TensorRowProduct<kBits, kColumns, kThreads, kChunk, kLinearRing, 1>>());
          }
          return body(Choice<TensorRowProduct<kBits, kColumns, kThreads, kChunk, kLinearRing,
                                              kMaxStepRows>>());
        });
      }
    }
    constexpr int kColumns = kLinearBlock.columns, kThreads = kLinearBlock.threads;
    if (s.rows == 1) return body(Choice<PackedRowProduct<T, kBits, 8, kColumns, kThreads, 1>>());
    return body(Choice<PackedRowProduct<T, kBits, 8, kColumns, kThreads, kMostCodeRows>>());
  };
  if (s.codes.bits == 4) return of_bits(std::integral_constant<int, 4>());
  return of_bits(std::integral_constant<int, 8>());
}

template <typename T, typename Product>
size_t linear_shared_bytes(const LinearStep& s) {
  return linear_x_bytes<T, Product>(s) + sizeof(float) * Product::kSharedFloats;
}

template <typename T, typename Product>
cudaError_t launch_codes(const LinearStep& s, cudaStream_t stream) {
  return launch(multiply_codes<T, Product>, blocks_for(s.columns, Product::kColumns),
                Product::kThreads, linear_shared_bytes<T, Product>(s), s, s.overlaps, stream);
}

}  // namespace step

// Of a block's shared memory.
template <typename T>
size_t linear_step_shared_bytes(const LinearStep& s) {
  return step::with_linear_product<T>(s, [&](auto choice) {
    return step::linear_shared_bytes<T, step::chosen<decltype(choice)>>(s);
  });
}

template <typename T>
cudaError_t launch_linear_step(const LinearStep& s, cudaStream_t stream) {
  return step::with_linear_product<T>(s, [&](auto choice) {
    return step::launch_codes<T, step::chosen<decltype(choice)>>(s, stream);
  });
}

}  // namespace mamba
