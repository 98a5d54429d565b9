// Weights of 4 and 8 bits on their way into registers. A matrix of codes is laid out as the tensor
// of an ONNX file: row-major, of 4 bits the even column in a byte's lower half.
//
//   weight = scale (code - zero point), a scale and a zero point of each column's block of rows
//
// A code u, counted from the smallest, becomes 1 + u / kSpan: its bits placed in the mantissa of 1.
// That is one shift and one logical instruction, where a conversion is as slow as four.
#pragma once

#include "common/cuda/numeric.cuh"
#include "layer/cuda/codes.h"
#include "layer/cuda/gemv.cuh"
#include "layer/cuda/step.cuh"

namespace mamba {

// Words of 32 bits, read as load_weights reads.
template <int Words>
__device__ __forceinline__ void load_words(const void* address, uint32_t (&words)[Words]) {
  static_assert(Words == 1 || Words == 2 || Words == 4);
  if constexpr (Words == 4) {
    const uint4 v = load_weights(address);
    words[0] = v.x;
    words[1] = v.y;
    words[2] = v.z;
    words[3] = v.w;
  } else if constexpr (Words == 2) {
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "l"(address));
  } else {
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];"
                 : "=r"(words[0])
                 : "l"(address));
  }
}

// Codes of Width neighbouring columns of a row. T: dtype of scales.
template <typename T, int Bits, int Width>
struct Codes {
  static constexpr int kBits = Bits, kWidth = Width;
  static constexpr int kWords = Width * Bits / 32;
  static constexpr float kSpan = 1 << Bits;
  // With the highest bit of signed codes flipped they are counted from the smallest.
  static constexpr uint32_t kHighest = Bits == 4 ? 0x88888888u : 0x80808080u;

  uint32_t words[kWords];

  // 1 + u / kSpan of a column; j is known when this is compiled.
  __device__ __forceinline__ float mantissa(int j) const {
    constexpr int kPlace = 23 - Bits;  // of a code in the mantissa
    const uint32_t word = words[j * Bits / 32];
    const int from = j * Bits % 32;
    const uint32_t placed = from <= kPlace ? word << (kPlace - from) : word >> (from - kPlace);
    constexpr uint32_t kMask = ((1u << Bits) - 1) << kPlace;
    return __uint_as_float((placed & kMask) | 0x3f800000u);
  }
};

// Where the codes, scales and zero points of a matrix lie.
template <typename T, int Bits, int Width>
class CodeReader {
 public:
  using Row = Codes<T, Bits, Width>;
  static constexpr int kScalePacks = Width * sizeof(T) / 16;

  // What a column's mantissa is turned into a weight with: weight = factor (mantissa - offset).
  struct Block {
    Pack<T, 16 / sizeof(T)> scales[kScalePacks];
    Row zero_points;

    __device__ __forceinline__ float factor(int j) const {
      constexpr int kCount = 16 / sizeof(T);
      return Row::kSpan * to_float(scales[j / kCount].values[j % kCount]);
    }
    __device__ __forceinline__ float offset(int j) const { return zero_points.mantissa(j); }
  };

  __device__ CodeReader(const void* codes, const mamba_codes& of, int depth, int columns)
      : codes_(static_cast<const char*>(codes)),
        scales_(static_cast<const T*>(of.scales)),
        zero_points_(static_cast<const char*>(of.zero_points)),
        columns_(columns),
        block_(block_rows(of, depth)),
        flip_(of.zero_points ? 0 : Row::kHighest) {}

  __device__ __forceinline__ void load(Row& row, int k, int column) const {
    load_words(codes_ + bytes_to(k, column), row.words);
  }
  __device__ __forceinline__ void load(Block& block, int k, int column) const {
    const int row = k / block_;
    const T* scales = scales_ + static_cast<int64_t>(row) * columns_ + column;
#pragma unroll
    for (int i = 0; i < kScalePacks; ++i) {
      const uint4 v = load_weights(scales + i * (16 / sizeof(T)));
      block.scales[i] = reinterpret_cast<const Pack<T, 16 / sizeof(T)>&>(v);
    }
    if (zero_points_) {
      load_words(zero_points_ + bytes_to(row, column), block.zero_points.words);
    } else {
#pragma unroll
      for (int i = 0; i < Row::kWords; ++i) block.zero_points.words[i] = Row::kHighest;
    }
  }
  // Counts the codes from the smallest: once, before mantissa.
  __device__ __forceinline__ void count(Row& row) const {
#pragma unroll
    for (int i = 0; i < Row::kWords; ++i) row.words[i] ^= flip_;
  }

 private:
  __device__ __forceinline__ int64_t bytes_to(int row, int column) const {
    return (static_cast<int64_t>(row) * columns_ + column) * Bits / 8;
  }

  const char* const codes_;
  const T* const scales_;
  const char* const zero_points_;
  const int columns_, block_;
  const uint32_t flip_;
};

}  // namespace mamba
