// Matrices of weights as codes (mamba_codes): what a step takes, and their widening for many rows.
#pragma once

#include <cuda_runtime.h>

#include "common/cuda/numeric.cuh"
#include "mamba_kernels.h"

namespace mamba {

// Of a layer's two large matrices; bits are 0 where the weights are T.
struct LayerCodes {
  mamba_codes in, out;
};

// A step reads a run of rows of one block at once: a block's rows are a multiple of the longest.
constexpr int kCodeRows = 16;
constexpr int kMostCodeRows = 4;  // rows of x that a step multiplies with codes

// Whether a step of so many rows takes a matrix of so many columns: the codes of 8 of them, and
// their scales, must be readable at once. weight: the codes; T is taken always.
inline bool step_takes(const mamba_codes& codes, const void* weight, int64_t rows, int64_t columns,
                       size_t element) {
  if (codes.bits == 0) return true;
  return rows <= kMostCodeRows && columns % 8 == 0 && codes.block % kCodeRows == 0 &&
         is_aligned<16>(weight, 0, 1) && is_aligned<16>(codes.zero_points, 0, 1) &&
         is_aligned<16>(codes.scales, 8, element);
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
