// Matrices of weights as codes (mamba_codes): what a step takes, and their widening for many rows.
#pragma once

#include <cuda_runtime.h>

#include "common/cuda/gpu.cuh"
#include "common/cuda/numeric.cuh"
#include "common/errors.h"
#include "layer/parts.h"
#include "mamba_kernels.h"

namespace mamba {

// Of a layer's two large matrices; bits are 0 where the weights are T.
struct LayerCodes {
  mamba_codes in, out;
};

// A step reads so many rows of one block at once: a block's rows are a multiple.
constexpr int kCodeRows = 32;
constexpr int kMostCodeRows = 4;  // rows of x that a step multiplies with codes on CUDA cores

// Whether a step's products with codes are tensor_gemv.cuh's, on the current device.
inline bool multiplies_on_tensor_cores(mamba_dtype dtype) {
  const Gpu& gpu = current_gpu();
  return dtype == MAMBA_FP16 && gpu.major >= 8 && gpu.shared_bytes >= kLeastTensorShared;
}

// Rows of a column that share a scale.
__host__ __device__ inline int block_rows(const mamba_codes& codes, int64_t depth) {
  return static_cast<int>(depth) / static_cast<int>(codes.blocks);
}

// Refuses what is no matrix of so many rows. name, matrix: in messages.
inline mamba_status check_codes(const char* name, const char* matrix, const mamba_codes& codes,
                                int64_t depth) {
  if (codes.bits == 0) return MAMBA_OK;
  if (codes.bits != 4 && codes.bits != 8) {
    return fail(MAMBA_INVALID, "%s: codes of %s have %d bits, expected 4 or 8", name, matrix,
                codes.bits);
  }
  if (codes.blocks < 1 || depth % codes.blocks != 0) {
    return fail(MAMBA_INVALID, "%s: %lld blocks of %s do not divide its %lld rows", name,
                static_cast<long long>(codes.blocks), matrix, static_cast<long long>(depth));
  }
  if (codes.scales) return MAMBA_OK;
  return fail(MAMBA_INVALID, "%s: the scales of %s are null", name, matrix);
}

// Whether the codes of 8 columns of a matrix, and their scales, can be read at once, and those of
// kCodeRows rows share scales. weight: the codes.
inline bool are_read_together(const mamba_codes& codes, const void* weight, int64_t depth,
                              int64_t columns, mamba_dtype dtype) {
  if (codes.blocks < 1 || depth % codes.blocks != 0) return false;  // refused when it is run
  const auto element = static_cast<size_t>(element_bytes(dtype));
  return columns % 8 == 0 && block_rows(codes, depth) % kCodeRows == 0 &&
         is_aligned<16>(weight, 0, 1) && is_aligned<16>(codes.zero_points, 0, 1) &&
         is_aligned<16>(codes.scales, 8, element);
}

// Whether a step of so many rows takes a matrix of codes, or of T. weight: the codes.
inline bool step_takes(const mamba_codes& codes, const void* weight, int64_t rows, int64_t depth,
                       int64_t columns, mamba_dtype dtype) {
  if (codes.bits == 0) return true;
  return (rows <= kMostCodeRows || multiplies_on_tensor_cores(dtype)) &&
         are_read_together(codes, weight, depth, columns, dtype);
}

// A matrix of codes, and where its weights go.
struct Widening {
  mamba_codes codes;
  const void* weight;  // (depth, columns) codes
  int64_t depth, columns;
  mamba_dtype dtype;  // T
  void* widened;      // (depth, columns) T
};
cudaError_t launch_widen(const Widening& w, cudaStream_t stream);

}  // namespace mamba
