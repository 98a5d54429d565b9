// c = a b' for a matrix b with a row an output, (columns, depth), as a head and its embedding are
// kept: what product.h does where b lies the other way round.
//
// Few rows: a task owns some outputs, and reads their rows of b once, a few side by side. Many
// rows: columns of b' are packed as those of another matrix. Whatever the number of threads or of
// rows, a sum of few rows has one order.
#pragma once

#include "layer/cpu/product_tile.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr int64_t kFewTurnedRows = 32;  // at most; beyond, packing costs less than it saves
constexpr int kTurnedRows = 4;          // of a, that are multiplied at once
constexpr int kTurnedColumns = 64;      // of a task
constexpr int64_t kTurnedAhead = 2;     // groups of outputs that are asked for before they are read

// Rows of b whose sums of all rows stay in registers.
template <int kRows>
constexpr int turned_outputs() {
  return kLanes == 16 || kRows == 1 ? 4 : 2;
}

// sums (kRows, kTurnedColumns) of some outputs, whose rows of b follow one another.
template <typename T, int kRows, int kOutputs>
__attribute__((always_inline)) static inline void multiply_outputs(const typename T::Bits* a,
                                                                   int64_t a_stride,
                                                                   const typename T::Bits* b,
                                                                   int64_t depth, float* sums) {
  Vec parts[kRows][kOutputs] = {};
  const auto add = [&](int64_t k, int count) __attribute__((always_inline)) {
    Vec left[kRows];
    for (int r = 0; r < kRows; ++r) left[r] = load<T>(a + r * a_stride + k, count);
    for (int i = 0; i < kOutputs; ++i) {
      const typename T::Bits* from = b + i * depth + k;
      __builtin_prefetch(from + kTurnedAhead * kOutputs * depth);
      const Vec right = load<T>(from, count);
      for (int r = 0; r < kRows; ++r) parts[r][i] += left[r] * right;
    }
  };
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) add(k, kLanes);
  if (k < depth) add(k, static_cast<int>(depth - k));
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kOutputs; ++i) sums[r * kTurnedColumns + i] = sum(parts[r][i]);
  }
}

template <typename T, int kRows>
static void multiply_turned_rows(const ProductCall& p, int64_t row, int64_t column, int count,
                                 float* sums) {
  constexpr int kOutputs = turned_outputs<kRows>();
  const auto* a = static_cast<const typename T::Bits*>(p.a) + row * p.a_stride;
  const auto* b = static_cast<const typename T::Bits*>(p.b) + column * p.depth;
  int i = 0;
  for (; i + kOutputs <= count; i += kOutputs) {
    multiply_outputs<T, kRows, kOutputs>(a, p.a_stride, b + i * p.depth, p.depth, sums + i);
  }
  for (; i < count; ++i) {
    multiply_outputs<T, kRows, 1>(a, p.a_stride, b + i * p.depth, p.depth, sums + i);
  }
}

// Some columns of c.
template <typename T, typename R>
static void multiply_turned_few(const ProductCall& p, int64_t task) {
  const int64_t column = task * kTurnedColumns, left = p.columns - column;
  const int count = static_cast<int>(left < kTurnedColumns ? left : kTurnedColumns);
  for (int64_t row = 0; row < p.rows; row += kTurnedRows) {
    float sums[kTurnedRows * kTurnedColumns] = {};
    const int64_t rows = p.rows - row < kTurnedRows ? p.rows - row : kTurnedRows;
    switch (rows) {
      case 1:
        multiply_turned_rows<T, 1>(p, row, column, count, sums);
        break;
      case 2:
        multiply_turned_rows<T, 2>(p, row, column, count, sums);
        break;
      case 3:
        multiply_turned_rows<T, 3>(p, row, column, count, sums);
        break;
      default:
        multiply_turned_rows<T, kTurnedRows>(p, row, column, count, sums);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int n = 0; n < count; n += kLanes) {
        put<R>(p, row + r, column + n, load<Fp32>(sums + r * kTurnedColumns + n, kLanes));
      }
    }
  }
}

// As pack_columns, of b'.
template <typename T>
static inline void pack_turned_columns(const ProductCall& p, int64_t column, float* to) {
  const int64_t left = p.columns - column;
  const int64_t count = left < kProductColumns ? left : kProductColumns;
  if (count < kProductColumns) memset(to, 0, p.depth * kProductColumns * sizeof(float));
  const auto* from = static_cast<const typename T::Bits*>(p.b) + column * p.depth;
  for (int64_t k = 0; k < p.depth; k += kPanelDepth) {
    const int64_t depth = p.depth - k < kPanelDepth ? p.depth - k : kPanelDepth;
    for (int64_t j = 0; j < count; ++j) {
      float row[kPanelDepth];
      widen<T>(from + j * p.depth + k, row, depth);
      for (int64_t i = 0; i < depth; ++i) to[(k + i) * kProductColumns + j] = row[i];
    }
  }
}

}  // namespace MAMBA_ISA
}  // namespace mamba
