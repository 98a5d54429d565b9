// The products of a layer on a CPU: c = a b, plus a residual, b a weight (depth, columns) of any
// dtype.
//
// Many rows: a is packed in tiles of rows once; a task owns some columns, packs them of b, and runs
// every tile of a over them, each tile of c in registers for the whole depth. Few rows: b is only
// read, in the order of memory; a task owns some of the depth and makes a part of the sum. Whatever
// the number of threads, each sum has one order.
#pragma once

#include "common/cpu/kernels.h"
#include "common/cpu/sequences.h"
#include "common/cpu/simd.h"
#include "common/sizes.h"

namespace mamba {
namespace MAMBA_ISA {

// A tile of c in registers: rows by vectors. 16 registers, or 32.
constexpr int kProductRows = kLanes == 16 ? 14 : 6;
constexpr int kProductVectors = 2;
constexpr int64_t kProductColumns = kProductVectors * kLanes;
constexpr int64_t kPanelsATask = 2;  // of columns
constexpr int64_t kPanelDepth = 64;  // of a

constexpr int64_t kFewRows = 4;         // at most; beyond, packing costs less than it saves
constexpr int64_t kDepthAtOnce = 8;     // of few rows: rows of b that are added to c at once
constexpr int64_t kAheadBytes = 1024;   // of each of them, that is asked for before it is read
constexpr int64_t kLeastDepth = 64;     // of a task
constexpr int64_t kMostParts = 16;      // of a sum: each is written and read again
constexpr int64_t kColumnsASum = 1024;  // of a task that adds the parts

static inline int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// --- Many rows

static inline int64_t packed_depth(const ProductCall& p) {
  return parts_of(p.depth, kPanelDepth) * kPanelDepth;
}

static inline int64_t product_row_tiles(const ProductCall& p) {
  return parts_of(p.rows, kProductRows);
}

// A tile of a in panels (kProductRows, kPanelDepth): a row's next element is at a constant
// distance from that of the row before. What lies beyond the rows and the depth is zero.
template <typename T>
static void pack_rows(const ProductCall& p, int64_t tile) {
  const int64_t first = tile * kProductRows, panels = parts_of(p.depth, kPanelDepth);
  float* to = p.scratch + first * packed_depth(p);
  memset(to, 0, kProductRows * panels * kPanelDepth * sizeof(float));
  for (int64_t panel = 0; panel < panels; ++panel, to += kProductRows * kPanelDepth) {
    const int64_t k = panel * kPanelDepth, left = p.depth - k;
    for (int r = 0; r < kProductRows && first + r < p.rows; ++r) {
      const auto* from = static_cast<const typename T::Bits*>(p.a) + (first + r) * p.a_stride + k;
      widen<T>(from, to + r * kPanelDepth, left < kPanelDepth ? left : kPanelDepth);
    }
  }
}

// Columns of b as (depth, kProductColumns); those beyond the last are zero.
template <typename T>
static inline void pack_columns(const ProductCall& p, int64_t column, float* to) {
  const int64_t left = p.columns - column;
  const auto* from = static_cast<const typename T::Bits*>(p.b) + column;
  for (int64_t k = 0; k < p.depth; ++k, from += p.columns) {
    for (int v = 0; v < kProductVectors; ++v) {
      const int64_t here = left - v * kLanes;
      const int count = static_cast<int>(here < kLanes ? (here < 0 ? 0 : here) : kLanes);
      if (count > 0) __builtin_prefetch(from + 8 * p.columns + v * kLanes);
      store<Fp32>(to + k * kProductColumns + v * kLanes,
                  count > 0 ? load<T>(from + v * kLanes, count) : Vec{}, kLanes);
    }
  }
}

// Writes a vector of c.
template <typename R>
static inline void put(const ProductCall& p, int64_t row, int64_t column, Vec sum) {
  const int64_t left = p.columns - column;
  if (left <= 0) return;
  const int count = static_cast<int>(left < kLanes ? left : kLanes);
  const int64_t at = row * p.columns + column;
  if (p.residual) {
    sum += load<R>(static_cast<const typename R::Bits*>(p.residual) + at, count);
  }
  store<R>(static_cast<typename R::Bits*>(p.c) + at, sum, count);
}

template <typename R, int kRows>
static inline void multiply_tile(const ProductCall& p, const float* a, const float* b, int64_t row,
                                 int64_t column) {
  Vec tile[kRows][kProductVectors] = {};
  for (int64_t k = 0; k < p.depth; k += kPanelDepth, a += kProductRows * kPanelDepth) {
    const int64_t depth = p.depth - k < kPanelDepth ? p.depth - k : kPanelDepth;
    for (int64_t j = 0; j < depth; ++j, b += kProductColumns) {
      Vec right[kProductVectors];
      for (int v = 0; v < kProductVectors; ++v) right[v] = load<Fp32>(b + v * kLanes, kLanes);
      for (int r = 0; r < kRows; ++r) {
        const float left = a[r * kPanelDepth + j];
        for (int v = 0; v < kProductVectors; ++v) tile[r][v] += left * right[v];
      }
    }
  }
  for (int r = 0; r < kRows && row + r < p.rows; ++r) {
    for (int v = 0; v < kProductVectors; ++v) put<R>(p, row + r, column + v * kLanes, tile[r][v]);
  }
}

template <typename T, typename R>
static void multiply_columns(const ProductCall& p, int64_t task, float* packed) {
  const int64_t first = task * kPanelsATask * kProductColumns;
  int panels = 0;
  for (; panels < kPanelsATask && first + panels * kProductColumns < p.columns; ++panels) {
    pack_columns<T>(p, first + panels * kProductColumns,
                    packed + panels * kProductColumns * p.depth);
  }
  for (int64_t row = 0; row < p.rows; row += kProductRows) {
    const float* a = p.scratch + row * packed_depth(p);
    for (int i = 0; i < panels; ++i) {
      const float* b = packed + i * kProductColumns * p.depth;
      const int64_t column = first + i * kProductColumns;
      if (p.rows - row > kProductRows / 2) {
        multiply_tile<R, kProductRows>(p, a, b, row, column);
      } else {
        multiply_tile<R, kProductRows / 2>(p, a, b, row, column);
      }
    }
  }
}

// --- Few rows

// Part of c += a b, over `depth` (at most kDepthAtOnce) of b's rows.
template <typename T, int kRows, int kDepth>
static inline void add_few(const typename T::Bits* b, int64_t columns, const float* a, float* c) {
  for (int64_t n = 0; n < columns; n += kLanes) {
    const int count = static_cast<int>(columns - n < kLanes ? columns - n : kLanes);
    // Processors foresee fewer streams than these; behind a row's end comes that of the next depth.
    int64_t ahead = n + kAheadBytes / static_cast<int64_t>(sizeof(*b));
    if (ahead >= columns) ahead += (kDepth - 1) * columns;
    Vec right[kDepth];
    for (int k = 0; k < kDepth; ++k) {
      __builtin_prefetch(b + k * columns + ahead);
      right[k] = load<T>(b + k * columns + n, count);
    }
    for (int r = 0; r < kRows; ++r) {
      // Two sums: one would wait for itself.
      Vec even = load<Fp32>(c + r * columns + n, count), odd = {};
      for (int k = 0; k < kDepth; ++k) (k % 2 ? odd : even) += a[r * kDepthAtOnce + k] * right[k];
      store<Fp32>(c + r * columns + n, even + odd, count);
    }
  }
}

static inline int64_t depth_a_task(const ProductCall& p) {
  const int64_t depth = parts_of(parts_of(p.depth, kMostParts), kDepthAtOnce) * kDepthAtOnce;
  return depth < kLeastDepth ? kLeastDepth : depth;
}

// The part of c that a task's depth adds.
template <typename T, int kRows>
static void multiply_few(const ProductCall& p, int64_t task) {
  const int64_t begin = task * depth_a_task(p);
  const int64_t end = begin + depth_a_task(p) < p.depth ? begin + depth_a_task(p) : p.depth;
  const auto* a = static_cast<const typename T::Bits*>(p.a);
  const auto* b = static_cast<const typename T::Bits*>(p.b);
  float* part = p.scratch + task * kRows * p.columns;
  memset(part, 0, kRows * p.columns * sizeof(float));
  float left[kRows * kDepthAtOnce];
  int64_t k = begin;
  for (; k + kDepthAtOnce <= end; k += kDepthAtOnce) {
    for (int r = 0; r < kRows; ++r) {
      widen<T>(a + r * p.a_stride + k, left + r * kDepthAtOnce, kDepthAtOnce);
    }
    add_few<T, kRows, kDepthAtOnce>(b + k * p.columns, p.columns, left, part);
  }
  for (; k < end; ++k) {
    for (int r = 0; r < kRows; ++r) widen<T>(a + r * p.a_stride + k, left + r * kDepthAtOnce, 1);
    add_few<T, kRows, 1>(b + k * p.columns, p.columns, left, part);
  }
}

// Adds the parts of some columns.
template <typename R>
static void add_parts(const ProductCall& p, int64_t task) {
  const int64_t parts = parts_of(p.depth, depth_a_task(p));
  const int64_t begin = task * kColumnsASum;
  const int64_t end = begin + kColumnsASum < p.columns ? begin + kColumnsASum : p.columns;
  for (int64_t row = 0; row < p.rows; ++row) {
    for (int64_t n = begin; n < end; n += kLanes) {
      const int count = static_cast<int>(end - n < kLanes ? end - n : kLanes);
      Vec sum = {};
      for (int64_t part = 0; part < parts; ++part) {
        sum += load<Fp32>(p.scratch + (part * p.rows + row) * p.columns + n, count);
      }
      put<R>(p, row, n, sum);
    }
  }
}

// --- Tasks

static inline bool has_few_rows(const ProductCall& p) { return p.rows <= kFewRows; }

static int64_t product_scratch_bytes(const ProductCall& p) {
  if (has_few_rows(p)) {
    return product(parts_of(p.depth, depth_a_task(p)), p.rows, p.columns, sizeof(float));
  }
  return product(product_row_tiles(p) * kProductRows, packed_depth(p), sizeof(float));
}

static int64_t product_task_bytes(const ProductCall& p) {
  return has_few_rows(p) ? 0 : product(kPanelsATask * kProductColumns, p.depth, sizeof(float));
}

static size_t product_first_tasks(const ProductCall& p) {
  return static_cast<size_t>(has_few_rows(p) ? parts_of(p.depth, depth_a_task(p))
                                             : product_row_tiles(p));
}

static size_t product_second_tasks(const ProductCall& p) {
  return static_cast<size_t>(
      parts_of(p.columns, has_few_rows(p) ? kColumnsASum : kPanelsATask * kProductColumns));
}

template <typename T>
static void product_first_task(const ProductCall& p, int64_t task) {
  switch (has_few_rows(p) ? p.rows : 0) {
    case 1:
      return multiply_few<T, 1>(p, task);
    case 2:
      return multiply_few<T, 2>(p, task);
    case 3:
      return multiply_few<T, 3>(p, task);
    case 4:
      return multiply_few<T, 4>(p, task);
    default:
      return pack_rows<T>(p, task);
  }
}

template <typename T, typename R>
static void product_second_task(ProductCall& p, int64_t task) {
  if (has_few_rows(p)) return add_parts<R>(p, task);
  const Scratch scratch(product_task_bytes(p));
  if (scratch.data()) return multiply_columns<T, R>(p, task, scratch.data());
  __atomic_store_n(&p.lacks_memory, 1, __ATOMIC_RELAXED);
}

static void run_product_first_task(void* context, size_t task) {
  const ProductCall& call = *static_cast<const ProductCall*>(context);
  const int64_t index = static_cast<int64_t>(task);
  switch (call.dtype) {
    case MAMBA_FP32:
      return product_first_task<Fp32>(call, index);
    case MAMBA_FP16:
      return product_first_task<Fp16>(call, index);
    case MAMBA_BF16:
      return product_first_task<Bf16>(call, index);
  }
}

static void run_product_second_task(void* context, size_t task) {
  ProductCall& call = *static_cast<ProductCall*>(context);
  const int64_t index = static_cast<int64_t>(task);
  const bool to_fp32 = call.c_dtype == MAMBA_FP32;
  switch (call.dtype) {
    case MAMBA_FP32:
      return product_second_task<Fp32, Fp32>(call, index);
    case MAMBA_FP16:
      return to_fp32 ? product_second_task<Fp16, Fp32>(call, index)
                     : product_second_task<Fp16, Fp16>(call, index);
    case MAMBA_BF16:
      return to_fp32 ? product_second_task<Bf16, Fp32>(call, index)
                     : product_second_task<Bf16, Bf16>(call, index);
  }
}

}  // namespace MAMBA_ISA
}  // namespace mamba
