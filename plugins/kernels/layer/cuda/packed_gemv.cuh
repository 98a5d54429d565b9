// GEMV for a few rows over a matrix of codes (code_reader.cuh): RowProduct, of gemv.cuh, for
// weights of 4 and 8 bits. A code that is read is widened in registers, so that the time is that of
// its bits.
#pragma once

#include <type_traits>

#include "layer/cuda/block_sums.cuh"
#include "layer/cuda/code_reader.cuh"
#include "layer/cuda/gemv.cuh"
#include "layer/cuda/launch.cuh"
#include "layer/cuda/tensor_gemv.cuh"

namespace mamba {

// As RowProduct. T: dtype of x and of scales. Width: columns a thread. A run of rows lies within a
// block of the codes.
template <typename T, int Bits, int Width, int Columns, int Threads, int Rows>
class PackedRowProduct {
 public:
  static constexpr int kColumns = Columns, kThreads = Threads, kRows = Rows;
  static constexpr int kWidth = Width;
  static constexpr int kLanes = Columns / kWidth;
  static constexpr int kGroups = Threads / kLanes;
  // Rows that a thread reads at once: 128 bytes of one row's product, less where sums take
  // registers.
  static constexpr int kRun = Bits == 4 && Rows == 1 ? 2 * kGemvRun : kGemvRun;
  static constexpr int kStep = kGroups * kRun;
  using Sums = BlockSums<kLanes, kWidth, Threads, Rows>;
  static constexpr int kSharedFloats = Sums::kSharedFloats;
  static constexpr int kPendingCopies = 0;
  static constexpr bool kReadsShared = false;
  static_assert(kRun % kGemvRun == 0 && kCodeRows % kRun == 0);

  __device__ PackedRowProduct(const Matrix& w, int first_column, int first, int last, const T* x,
                              int x_stride, int x_rows = Rows)
      : reader_(w.data, w.codes, w.depth, w.columns),
        x_(x),
        x_stride_(x_stride),
        last_x_row_(x_rows - 1),
        column_(first_column + static_cast<int>(threadIdx.x % kLanes) * kWidth),
        at_(first + static_cast<int>(threadIdx.x / kLanes) * kRun),
        // A column beyond the matrix has no rows.
        last_(column_ < w.columns ? last : 0) {}

  __host__ __device__ static constexpr int64_t x_stride(int64_t width) {
    return (width + kGemvRun - 1) / kGemvRun * kGemvRun;
  }

  __device__ void start_weights(float*) {
    load(even_, at_);
    load(odd_, at_ + kStep);
  }
  __device__ void start_x() {}  // it is read when it is needed

  __device__ void finish(float* partial) {
    for (int k = at_; k < last_; k += 2 * kStep) {
      add(even_, k);
      load(even_, k + 2 * kStep);
      add(odd_, k + kStep);
      load(odd_, k + 3 * kStep);
    }
    Sums::add_up(sum_, partial);
  }

 private:
  using Reader = CodeReader<T, Bits, Width>;
  struct Run {
    typename Reader::Row rows[kRun];
    typename Reader::Block block;
  };

  // The depth is a multiple of a block's, and so of a run's.
  __device__ __forceinline__ void load(Run& run, int k) const {
    if (k >= last_) return;
#pragma unroll
    for (int i = 0; i < kRun; ++i) reader_.load(run.rows[i], k + i, column_);
    reader_.load(run.block, k, column_);
  }

  __device__ __forceinline__ void add(Run& run, int k) {
    if (k >= last_) return;
    float x[Rows][kRun], all[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const T* from = x_ + static_cast<int64_t>(min(r, last_x_row_)) * x_stride_ + k;
      all[r] = 0.f;
#pragma unroll
      for (int i = 0; i < kRun; i += kGemvRun) {
        const auto values = *reinterpret_cast<const Pack<T, kGemvRun>*>(from + i);
#pragma unroll
        for (int j = 0; j < kGemvRun; ++j) all[r] += x[r][i + j] = to_float(values.values[j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) reader_.count(run.rows[i]);
    // Of a block, sum of x (mantissa - offset) = sum of x mantissa - offset times sum of x. The
    // mantissas lie in [1, 2), so that little is cancelled.
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      float of_run[Rows] = {};
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const float mantissa = run.rows[i].mantissa(j);
#pragma unroll
        for (int r = 0; r < Rows; ++r) of_run[r] = fmaf(x[r][i], mantissa, of_run[r]);
      }
      const float factor = run.block.factor(j), offset = run.block.offset(j);
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        sum_[r][j] = fmaf(factor, fmaf(-offset, all[r], of_run[r]), sum_[r][j]);
      }
    }
  }

  const Reader reader_;
  const T* const x_;
  const int x_stride_, last_x_row_, column_, at_, last_;
  Run even_, odd_;
  float sum_[Rows][kWidth] = {};
};

namespace step {

// Calls body with the bytes that rows of so many columns of codes may be copied at a time.
template <typename Body>
auto with_chunk(int bits, int columns, Body body) {
  if (columns * bits / 8 % 16 == 0) return body(std::integral_constant<int, 16>());
  return body(std::integral_constant<int, 4>());
}

// Calls body with the Choice of the first kernel's product of fp16 on tensor cores.
template <int Bits, int Chunk, typename Body>
auto with_tensor_in_product(int rows, int columns, Body body) {
  const auto of = [&](auto of_block, auto ring, auto compiled_rows) {
    return body(Choice<TensorRowProduct<Bits, decltype(of_block)::value, kTensorThreads, Chunk,
                                        decltype(ring)::value, decltype(compiled_rows)::value>>());
  };
  const std::integral_constant<int, kFewTensorColumns> few{};
  const std::integral_constant<int, kInProjBlock.columns> some{};
  const std::integral_constant<int, kManyTensorColumns> many{};
  const std::integral_constant<int, 1> one{};
  const std::integral_constant<int, kMaxStepRows> all{};
  const std::integral_constant<int, kTensorRing> ring{};
  const std::integral_constant<int, kSharedTensorRing> shared_ring{};
  const std::integral_constant<int, kTensorRowsRing> rows_ring{};
  const std::integral_constant<int, kSharedTensorRowsRing> shared_rows_ring{};
  const bool is_alone = has_own_multiprocessors(columns, some);
  if constexpr (Chunk == 16) {
    if constexpr (Bits == 4) {
      // Halves of the columns are whole blocks', so that these can go on with x_proj.
      constexpr GemvBlock kBlock = kWideTensorBlock;
      if (rows == 1 && !is_alone && columns % (2 * kBlock.columns) == 0 &&
          has_own_multiprocessors(columns, kBlock.columns)) {
        return body(Choice<TensorRowProduct<Bits, kBlock.columns, kBlock.threads, Chunk,
                                            kWideTensorRing, 1>>());
      }
    }
    if (leaves_multiprocessors(columns, few)) {
      return rows == 1 ? of(few, ring, one) : of(few, rows_ring, all);
    }
    if constexpr (Bits == 8) {
      const std::integral_constant<int, kFewSharedTensorRing> few_ring{};
      if (rows == 1 && !is_alone) return of(few, few_ring, one);
    }
    if (rows > 1 && !is_alone && has_own_multiprocessors(columns, many)) {
      return of(many, rows_ring, all);
    }
  }
  if (rows == 1) return is_alone ? of(some, ring, one) : of(some, shared_ring, one);
  return is_alone ? of(some, rows_ring, all) : of(some, shared_rows_ring, all);
}

// What multiplies with a matrix of codes: a layer's first kernel, or its last one, after a norm.
enum class PackedPlace { kFirst, kLast, kLastGated };

// The same of the last kernel, on tensor cores where that is quicker.
template <int Bits, int Chunk, PackedPlace Place, typename Body>
auto with_tensor_out_product(int rows, int depth, Body body) {
  constexpr int kColumns = kPackedOutBlock.columns, kThreads = kPackedOutBlock.threads;
  if constexpr (Bits == 4) {
    if constexpr (Chunk == 16 && Place == PackedPlace::kLast) {
      if (rows == 1 && depth <= kMostShallowDepth) {
        return body(Choice<TensorRowProduct<Bits, kColumns, kShallowOutThreads, Chunk,
                                            kSmallTensorOutRing, 1>>());
      }
      if (rows == 1 && depth >= kLeastDeepDepth) {
        return body(Choice<TensorRowProduct<Bits, kColumns, kDeepOutThreads, Chunk,
                                            kSmallTensorOutRing, 1>>());
      }
    }
    if (rows == 1) {
      return body(Choice<TensorRowProduct<Bits, kColumns, kThreads, Chunk, kTensorOutRing, 1>>());
    }
  }
  return body(
      Choice<
          TensorRowProduct<Bits, kColumns, kThreads, Chunk, kTensorOutRowsRing, kMaxStepRows>>());
}

// Calls body with the Choice of the product of these rows with a matrix of codes that step_takes
// allows.
template <typename T, PackedPlace Place, typename Body>
auto with_packed_product(const mamba_codes& codes, int rows, int depth, int columns, Body body) {
  constexpr bool kIsFirst = Place == PackedPlace::kFirst;
  constexpr GemvBlock kBlock = kIsFirst ? kInProjBlock : kPackedOutBlock;  // on CUDA cores
  constexpr int kColumns = kBlock.columns, kThreads = kBlock.threads;
  const auto of_bits = [&](auto bits) {
    constexpr int kBits = decltype(bits)::value;
    if constexpr (std::is_same_v<T, __half>) {
      const bool is_quicker = kIsFirst || kBits == 4 || rows > 1;
      if (is_quicker && multiplies_on_tensor_cores(MAMBA_FP16)) {
        return with_chunk(kBits, columns, [&](auto chunk) {
          constexpr int kChunk = decltype(chunk)::value;
          if constexpr (kIsFirst) {
            return with_tensor_in_product<kBits, kChunk>(rows, columns, body);
          } else {
            return with_tensor_out_product<kBits, kChunk, Place>(rows, depth, body);
          }
        });
      }
    }
    if (rows > 1) {
      return body(Choice<PackedRowProduct<T, kBits, 8, kColumns, kThreads, kMostCodeRows>>());
    }
    if (columns % 16 == 0) {
      return body(Choice<PackedRowProduct<T, kBits, 16, kColumns, kThreads, 1>>());
    }
    return body(Choice<PackedRowProduct<T, kBits, 8, kColumns, kThreads, 1>>());
  };
  if (codes.bits == 4) return of_bits(std::integral_constant<int, 4>());
  return of_bits(std::integral_constant<int, 8>());
}

}  // namespace step
}  // namespace mamba
