// Codes to weights of T, each rounded once, for products that take no codes: those of many rows,
// beside which this is little.
#include <type_traits>

#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/code_reader.cuh"
#include "layer/cuda/codes.h"
#include "layer/cuda/launch.cuh"

namespace mamba {
namespace {

constexpr int kThreads = kWidenBlock.threads, kColumns = kWidenBlock.columns;
constexpr int kRows = 8, kFewColumns = 4;
static_assert(kCodeRows % kRows == 0);

// A thread has kColumns columns of kRows rows, which share their scales.
template <typename T, int Bits>
__global__ void __launch_bounds__(kThreads) widen_together(const Widening w) {
  constexpr int kPack = 16 / sizeof(T);
  using Reader = CodeReader<T, Bits, kColumns>;
  const int columns = static_cast<int>(w.columns), first = blockIdx.x * kRows;
  const int column = (blockIdx.y * kThreads + threadIdx.x) * kColumns;
  if (column >= columns) return;
  const Reader reader(w.weight, w.codes, static_cast<int>(w.depth), columns);
  typename Reader::Block block;
  typename Reader::Row rows[kRows];
  reader.load(block, first, column);
#pragma unroll
  for (int r = 0; r < kRows; ++r) reader.load(rows[r], first + r, column);
  T* widened = static_cast<T*>(w.widened) + static_cast<int64_t>(first) * columns + column;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    reader.count(rows[r]);
#pragma unroll
    for (int i = 0; i < kColumns; i += kPack) {
      Pack<T, kPack> weights;
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const float steps = rows[r].mantissa(i + j) - block.offset(i + j);  // exact
        weights.values[j] = from_float<T>(block.factor(i + j) * steps);
      }
      *reinterpret_cast<Pack<T, kPack>*>(widened + static_cast<int64_t>(r) * columns + i) = weights;
    }
  }
}

// The code at a place of a matrix, laid out as a tensor of ONNX.
__device__ __forceinline__ int code_at(const void* codes, int bits, bool is_signed, int64_t at) {
  const auto* bytes = static_cast<const unsigned char*>(codes);
  if (bits == 8) return is_signed ? static_cast<signed char>(bytes[at]) : bytes[at];
  const int code = bytes[at / 2] >> (at % 2 * 4) & 15;
  return is_signed && code > 7 ? code - 16 : code;
}

// The same of any matrix: a block has one row, and kThreads * kFewColumns columns of it.
template <typename T>
__global__ void __launch_bounds__(kThreads) widen(const Widening w) {
  const int64_t row = blockIdx.x;
  const int64_t of_block = row / block_rows(w.codes, w.depth);
  const bool is_signed = !w.codes.zero_points;
  const T* scales = static_cast<const T*>(w.codes.scales) + of_block * w.columns;
  T* widened = static_cast<T*>(w.widened) + row * w.columns;
#pragma unroll
  for (int i = 0; i < kFewColumns; ++i) {
    const int64_t column = (int64_t{blockIdx.y} * kFewColumns + i) * kThreads + threadIdx.x;
    if (column >= w.columns) return;
    int code = code_at(w.weight, w.codes.bits, is_signed, row * w.columns + column);
    if (!is_signed) {
      code -= code_at(w.codes.zero_points, w.codes.bits, false, of_block * w.columns + column);
    }
    widened[column] = from_float<T>(to_float(scales[column]) * static_cast<float>(code));
  }
}

}  // namespace

cudaError_t launch_widen(const Widening& w, cudaStream_t stream) {
  return with_type(w.dtype, [&](auto* type) {
    using T = std::decay_t<decltype(*type)>;
    if (are_read_together(w.codes, w.weight, w.depth, w.columns, w.dtype)) {
      const dim3 grid(static_cast<unsigned>(w.depth / kRows),
                      step::blocks_for(w.columns, kThreads * kColumns));
      const auto kernel = w.codes.bits == 4 ? widen_together<T, 4> : widen_together<T, 8>;
      return launch_overlapping(kernel, grid, dim3(kThreads), 0, stream, false, w);
    }
    const dim3 grid(static_cast<unsigned>(w.depth),
                    step::blocks_for(w.columns, kThreads * kFewColumns));
    return launch_overlapping(widen<T>, grid, dim3(kThreads), 0, stream, false, w);
  });
}

}  // namespace mamba
