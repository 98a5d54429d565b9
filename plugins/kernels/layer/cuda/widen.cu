// Codes to weights of T, each rounded once, for products that take no codes: those of many rows,
// beside which this is little.
#include <type_traits>

#include "common/cuda/overlap.cuh"
#include "layer/cuda/codes.h"

namespace mamba {
namespace {

constexpr int kThreads = 256, kColumns = 4;

// The code at a place of a matrix, laid out as a tensor of ONNX.
__device__ __forceinline__ int code_at(const void* codes, int bits, bool is_signed, int64_t at) {
  const auto* bytes = static_cast<const unsigned char*>(codes);
  if (bits == 8) return is_signed ? static_cast<signed char>(bytes[at]) : bytes[at];
  const int code = bytes[at / 2] >> (at % 2 * 4) & 15;
  return is_signed && code > 7 ? code - 16 : code;
}

// A block has one row, and kThreads * kColumns columns of it.
template <typename T>
__global__ void __launch_bounds__(kThreads) widen(const Widening w) {
  const int64_t row = blockIdx.x;
  const int64_t of_block = row / block_rows(w.codes, w.depth);
  const bool is_signed = !w.codes.zero_points;
  const T* scales = static_cast<const T*>(w.codes.scales) + of_block * w.columns;
  T* widened = static_cast<T*>(w.widened) + row * w.columns;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int64_t column = (int64_t{blockIdx.y} * kColumns + i) * kThreads + threadIdx.x;
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
  constexpr int64_t kBlockColumns = kThreads * kColumns;
  const dim3 grid(static_cast<unsigned>(w.depth),
                  static_cast<unsigned>((w.columns + kBlockColumns - 1) / kBlockColumns));
  return with_type(w.dtype, [&](auto* type) {
    using T = std::decay_t<decltype(*type)>;
    return launch_overlapping(widen<T>, grid, dim3(kThreads), 0, stream, false, w);
  });
}

}  // namespace mamba
