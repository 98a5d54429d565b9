// The products of a layer on a CPU: c = a b, plus a residual, b a weight (depth, columns) of any
// dtype; or of a matrix (columns, depth), see turned_product.h.
//
// Many rows: a is packed in tiles of rows once; a task owns some columns, packs them of b, and runs
// every tile of a over them, each tile of c in registers for the whole depth. Few rows: b is only
// read; a task owns some columns, whose sums stay in registers, over a part of the depth. Whatever
// the number of threads, each sum has one order.
#pragma once

#include "layer/cpu/turned_product.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr int64_t kPanelsATask = 2;  // of columns

constexpr int64_t kFewRows = 4;         // at most; beyond, packing costs less than it saves
constexpr int64_t kRowsAhead = 16;      // of b, that are asked for before they are read
constexpr int64_t kBlockColumns = 256;  // of few rows' tasks, about
constexpr int64_t kEnoughTasks = 12;    // threads that begin together then end together
constexpr int64_t kLeastDepth = 64;     // of a task
constexpr int64_t kMostParts = 16;      // of a sum: each is written and read again
constexpr int64_t kColumnsASum = 1024;  // of a task that adds the parts

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
    const auto pack = p.is_turned ? pack_turned_columns<T> : pack_columns<T>;
    pack(p, first + panels * kProductColumns, packed + panels * kProductColumns * p.depth);
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

// Vectors of columns whose sums of all rows stay in registers.
template <int kRows>
constexpr int few_vectors() {
  constexpr int kSums = kLanes == 16 ? 24 : 12;  // registers, of 32 or 16
  return kRows == 1 ? (kLanes == 16 ? 16 : 12) : kSums / kRows;
}

static inline int64_t few_vectors(int64_t rows) {
  switch (rows) {
    case 1:
      return few_vectors<1>();
    case 2:
      return few_vectors<2>();
    case 3:
      return few_vectors<3>();
    default:
      return few_vectors<4>();
  }
}

static inline int64_t column_blocks(const ProductCall& p) {
  return parts_of(p.columns, few_vectors(p.rows) * kLanes);
}

// Parts of a sum: alike for any number of rows, so that a sequence's sums do not depend on others'.
static inline int64_t depth_parts(const ProductCall& p) {
  const int64_t wanted = parts_of(kEnoughTasks, parts_of(p.columns, kBlockColumns));
  const int64_t most = parts_of(p.depth, kLeastDepth);
  const int64_t parts = wanted < most ? wanted : most;
  return parts < kMostParts ? parts : kMostParts;
}

static inline int64_t depth_a_task(const ProductCall& p) {
  return parts_of(p.depth, depth_parts(p));
}

// c (rows, columns) = a b over some of the depth, of V vectors of columns, the last one `last`
// long.
template <typename T, int kRows, int V>
__attribute__((always_inline)) static inline void multiply_block(const typename T::Bits* a,
                                                                 int64_t a_stride,
                                                                 const typename T::Bits* b,
                                                                 int64_t columns, int64_t depth,
                                                                 int last, float* c) {
  constexpr int kBytes = V * kLanes * static_cast<int>(sizeof(*b));
  Vec sums[kRows][V] = {};
  for (int64_t k = 0; k < depth; ++k, b += columns) {
    if (k + kRowsAhead < depth) {  // rows lie too far apart for processors to foresee them
      const auto* ahead = reinterpret_cast<const char*>(b + kRowsAhead * columns);
      for (int byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(ahead + byte);
      __builtin_prefetch(ahead + kBytes - 1);  // where rows begin inside of a cache line
    }
    float left[kRows];
    for (int r = 0; r < kRows; ++r) left[r] = load<T>(a + r * a_stride + k, 1)[0];
    for (int v = 0; v < V; ++v) {
      const Vec right = load<T>(b + v * kLanes, v < V - 1 ? kLanes : last);
      for (int r = 0; r < kRows; ++r) sums[r][v] += left[r] * right;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < V; ++v) {
      store<Fp32>(c + r * columns + v * kLanes, sums[r][v], v < V - 1 ? kLanes : last);
    }
  }
}

// The same of `count` columns, fewer than a task's: V vectors while they are that many, then half.
template <typename T, int kRows, int V>
static void multiply_rest(const typename T::Bits* a, int64_t a_stride, const typename T::Bits* b,
                          int64_t columns, int64_t depth, int64_t count, float* c) {
  constexpr int64_t kLeast = (V - 1) * kLanes, kMost = V * kLanes;
  while (count > kLeast) {
    const int last = static_cast<int>(count < kMost ? count - kLeast : kLanes);
    multiply_block<T, kRows, V>(a, a_stride, b, columns, depth, last, c);
    b += kMost;
    c += kMost;
    count -= kMost;
  }
  if constexpr (V > 1) {
    if (count > 0) multiply_rest<T, kRows, V / 2>(a, a_stride, b, columns, depth, count, c);
  }
}

// The part of c's columns that a task's depth adds.
template <typename T, int kRows>
static void multiply_few(const ProductCall& p, int64_t task) {
  constexpr int kVectors = few_vectors<kRows>();
  const int64_t part = task / column_blocks(p);
  const int64_t column = task % column_blocks(p) * kVectors * kLanes, count = p.columns - column;
  const int64_t begin = part * depth_a_task(p), left = p.depth - begin;
  const int64_t depth = left < depth_a_task(p) ? left : depth_a_task(p);
  const auto* a = static_cast<const typename T::Bits*>(p.a) + begin;
  const auto* b = static_cast<const typename T::Bits*>(p.b) + begin * p.columns + column;
  float* c = p.scratch + part * kRows * p.columns + column;
  if (count >= kVectors * kLanes) {
    multiply_block<T, kRows, kVectors>(a, p.a_stride, b, p.columns, depth, kLanes, c);
  } else {
    multiply_rest<T, kRows, kVectors / 2>(a, p.a_stride, b, p.columns, depth, count, c);
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

static inline bool has_few_rows(const ProductCall& p) {
  return p.rows <= (p.is_turned ? kFewTurnedRows : kFewRows);
}

static int64_t product_scratch_bytes(const ProductCall& p) {
  if (has_few_rows(p) && p.is_turned) return 0;
  if (has_few_rows(p)) {
    return product(parts_of(p.depth, depth_a_task(p)), p.rows, p.columns, sizeof(float));
  }
  return product(product_row_tiles(p) * kProductRows, packed_depth(p), sizeof(float));
}

static int64_t product_task_bytes(const ProductCall& p) {
  return has_few_rows(p) ? 0 : product(kPanelsATask * kProductColumns, p.depth, sizeof(float));
}

static size_t product_first_tasks(const ProductCall& p) {
  if (has_few_rows(p) && p.is_turned)
    return static_cast<size_t>(parts_of(p.columns, kTurnedColumns));
  return static_cast<size_t>(has_few_rows(p) ? column_blocks(p) * parts_of(p.depth, depth_a_task(p))
                                             : product_row_tiles(p));
}

// None where the first tasks did it all.
static size_t product_second_tasks(const ProductCall& p) {
  if (has_few_rows(p) && p.is_turned) return 0;
  return static_cast<size_t>(
      parts_of(p.columns, has_few_rows(p) ? kColumnsASum : kPanelsATask * kProductColumns));
}

template <typename T>
static void product_first_task(const ProductCall& p, int64_t task) {
  if (has_few_rows(p) && p.is_turned) {
    return p.c_dtype == MAMBA_FP32 ? multiply_turned_few<T, Fp32>(p, task)
                                   : multiply_turned_few<T, T>(p, task);
  }
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
