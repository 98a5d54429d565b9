// RowProduct, of gemv.cuh, for up to 8 rows of 16 bits on the tensor cores of sm_80 and later,
// where CUDA cores take two instructions a weight and row.
//
// W goes through shared memory, so that few registers are taken: a block can wait for the kernel
// ahead beside a block of that kernel, with its first weights there. Warps share out stages of
// kStageRows rows of W, each warp with a ring of its own. W is the left factor, transposed; the
// eight columns of the right factor are the rows of x, or one row again and again.
//
// The 16 rows of W of a product are taken in such an order that a lane's numbers of x lie side by
// side: number 2 j + i of the tensor cores' first eight is row 4 j + i, of the other eight row
// 4 j + 2 + i.
#pragma once

#include "common/cuda/gpu.cuh"
#include "common/cuda/mma.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/block_sums.cuh"
#include "layer/cuda/code_ring.cuh"
#include "layer/cuda/gemv.cuh"
#include "layer/cuda/launch.cuh"

namespace mamba {

// As RowProduct. Rows: 1 or 8. x lies in shared memory, x_stride apart. The depth is a multiple of
// 16, columns are of 8.
template <typename T, int Columns, int Threads, int RingBytes, int Rows>
class RingRowProduct {
 public:
  static constexpr int kColumns = Columns, kThreads = Threads, kRows = Rows;
  static constexpr int kWidth = 16 / sizeof(T);  // columns a thread of the share after it
  static constexpr int kWarps = Threads / 32;
  static constexpr int kTile = 16;  // rows and columns of W of a product
  static constexpr int kStageRows = Columns < 32 ? 512 / Columns : kTile;  // at least 1 KB
  static constexpr int kStageBytes = kStageRows * Columns * 2;
  static constexpr int kStages = RingBytes / (kWarps * kStageBytes);
  static constexpr int kSums = kWarps * Rows * Columns;
  static constexpr int kSharedFloats = kSums + kWarps * kStages * kStageBytes / 4;
  static constexpr int kPendingCopies = kStages;
  static constexpr bool kReadsShared = true;
  static_assert(sizeof(T) == 2 && Columns % kTile == 0 && kStages >= 2 && (Rows == 1 || Rows == 8));

  __device__ RingRowProduct(const Matrix& w, int first_column, int, int depth, const T* x,
                            int x_stride, int = Rows)
      : weights_(static_cast<const T*>(w.data)),
        x_(x + (Rows == 1 ? 0 : lane() / 4 * x_stride) + lane() % 4 * 4),
        columns_(w.columns),
        first_column_(first_column),
        depth_(depth) {}

  // Of several rows each starts in other banks: four of them, 32 bytes each, are read together.
  __host__ __device__ static constexpr int64_t x_stride(int64_t width) {
    return Rows == 1 ? (width + 7) / 8 * 8 : (width + 63) / 64 * 64 + 16;
  }

  // shared: kSharedFloats floats, which finish gets again.
  __device__ __forceinline__ void start_weights(float* shared) {
    ring_ = reinterpret_cast<char*>(shared + kSums) + warp() * (kStages * kStageBytes);
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) load(i, i);
  }
  __device__ void start_x() {}

  __device__ __forceinline__ void finish(float* partial) {
    // What the ring has no room for at once.
    int i = 0, stage = 0;
#pragma unroll 1
    for (; row_of(i + kStages) < depth_; ++i) {
      wait_for_copies_but<kStages - 1>();
      __syncwarp();  // the other lanes' copies too
      add(i, stage);
      __syncwarp();
      load(i + kStages, stage);
      if (++stage == kStages) stage = 0;
    }
    wait_for_copies();
    __syncwarp();
#pragma unroll 4
    for (; row_of(i) < depth_; ++i) {
      add(i, stage);
      if (++stage == kStages) stage = 0;
    }
    add_up(partial);
  }

 private:
  static constexpr int kVectors = Columns * 2 / 16;  // of a row
  static constexpr int kChains =
      kStageRows > kTile ? 2 : 1;  // of sums that do not wait for one another

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int row_of(int number) { return (warp() + number * kWarps) * kStageRows; }

  // Where a stage keeps 16 bytes of the row of a position, so that eight rows in a row lie in
  // different banks.
  __device__ static int place(int position, int vector) {
    return (position * kVectors + (vector ^ (position * kVectors / 8 % kVectors))) * 16;
  }

  // Adds the products of the warp's rows of a number, which lie in a stage.
  __device__ __forceinline__ void add(int number, int stage) {
    const int pos = lane() % 8 + lane() / 16 * 8;  // of the row that the lane gives the address of
    const uint32_t from = shared_address(ring_) + stage * kStageBytes;
    const T* x = x_ + row_of(number);
#pragma unroll
    for (int k = 0; k < kStageRows / kTile; ++k) {
      if (k > 0 && row_of(number) + k * kTile >= depth_) break;
      const uint2 right = *reinterpret_cast<const uint2*>(x + k * kTile);
#pragma unroll
      for (int c = 0; c < Columns / kTile; ++c) {
        uint32_t left[4];
        load_tiles_transposed(from + place(k * kTile + pos, c * 2 + lane() / 8 % 2), left);
        multiply_add<T>(sum_[k % kChains][c], left, right.x, right.y);
      }
    }
  }

  // Starts the copies of the warp's rows of a number, a group; none beyond the last.
  __device__ __forceinline__ void load(int number, int stage) {
    const int first = row_of(number);
    if (first < depth_) {
      char* to = ring_ + stage * kStageBytes;
      const int vector = lane() % kVectors, column = first_column_ + vector * 8;
      constexpr int kApart = 32 / kVectors;
#pragma unroll
      for (int i = 0; i < kStageRows; i += kApart) {
        const int position = i + lane() / kVectors;
        const int row =
            first + position / 16 * 16 + position % 8 / 2 * 4 + position / 8 % 2 * 2 + position % 2;
        const bool exists = column < columns_ && row < depth_;
        copy_codes<16>(to + place(position, vector),
                       weights_ + (exists ? static_cast<int64_t>(row) * columns_ + column : 0),
                       exists);
      }
    }
    commit_copies();
  }

  __device__ __forceinline__ void add_up(float* partial) const {
    constexpr int kOwn = Rows == 1 ? 1 : 2;  // rows of x of a lane's sums
    const int row = Rows == 1 ? 0 : lane() % 4 * 2;
    if (Rows > 1 || lane() % 4 == 0) {
#pragma unroll
      for (int c = 0; c < Columns / kTile; ++c) {
#pragma unroll
        for (int i = 0; i < 2 * kOwn; ++i) {
          const int half = i / kOwn, e = i % kOwn;
          float sum = sum_[0][c][half * 2 + e];
          if constexpr (kChains > 1) sum += sum_[1][c][half * 2 + e];
          const int column = c * kTile + half * 8 + lane() / 4;
          partial[(warp() * Rows + row + e) * Columns + column] = sum;
        }
      }
    }
    add_up_warps<Rows * Columns, Threads>(partial);
  }

  const T* const weights_;
  const T* const x_;
  const int columns_, first_column_, depth_;
  char* ring_ = nullptr;
  float sum_[kChains][Columns / kTile][4] = {};
};

namespace step {

// Calls body with the Choice of the RingRowProduct of so many rows.
template <typename T, int Columns, typename Body>
auto with_ring_product(int rows, Body body) {
  if (rows == 1) return body(Choice<RingRowProduct<T, Columns, kRingThreads, kRingBytes, 1>>());
  return body(Choice<RingRowProduct<T, Columns, kRingThreads, kRingBytes, kMaxStepRows>>());
}

// The same of one row, for the first kernel.
template <typename T, typename Body>
auto with_ring_in_product(int columns, Body body) {
  constexpr int kFew = kFewRingColumns, kSome = kInProjBlock.columns;
  if (leaves_multiprocessors(columns, kFew)) {
    return body(Choice<RingRowProduct<T, kFew, kRingThreads, kFewRingBytes, 1>>());
  }
  if (has_own_multiprocessors(columns, kSome)) {
    return body(Choice<RingRowProduct<T, kSome, kRingThreads, kOwnRingBytes, 1>>());
  }
  return body(Choice<RingRowProduct<T, kSome, kRingThreads, kRingBytes, 1>>());
}

// Whether a product with T of this depth, whose columns can be read in 16 bytes, is a
// RingRowProduct's on the current device.
template <typename T>
bool takes_ring(int depth) {
  if constexpr (sizeof(T) != 2) return false;
  const Gpu& gpu = current_gpu();
  return depth % 16 == 0 && gpu.major >= 8 && gpu.shared_bytes >= kLeastTensorShared;
}

}  // namespace step
}  // namespace mamba
