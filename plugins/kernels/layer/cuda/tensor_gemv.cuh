// RowProduct, of gemv.cuh, for fp16 and a matrix of codes, on the tensor cores of sm_80 and later:
// for up to 8 rows, at about one instruction a weight, where CUDA cores take three.
//
// Warps share out blocks of kDepth rows of W, each warp with a ring of its own in shared memory, so
// that all of a block's bytes are on their way before the kernel ahead has ended and no register is
// spent on them. W is the left factor, transposed. A code u, counted from the smallest, is taken as
// the bits of an fp16 number: u 2^-24, a subnormal number, which the products are exact with. Where
// a lane's code lies four bits higher the number is 16 times as large. What a weight's code is
// counted from comes off at the end of a block of scales, as so many times the sum of x, which one
// more product with ones gives.
//
// The eight columns of the right factor are the rows of x. Of fewer rows they are several blocks of
// W: column n is of row n % Rows, and of the block n / Rows of so many in turn; it is 0 in the
// others. So scales are multiplied with once in kTurns blocks.
#pragma once

#include "common/cuda/mma.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/block_sums.cuh"
#include "layer/cuda/codes.h"
#include "layer/cuda/gemv.cuh"

namespace mamba {

// Queues a copy of Bytes to shared memory, of zeros where nothing exists there. L2 fetches whole
// lines, whose other parts neighbours are asking for.
template <int Bytes>
__device__ __forceinline__ void copy_codes(void* to, const void* from, bool exists) {
#ifdef MAMBA_HAVE_MMA
  static_assert(Bytes == 4 || Bytes == 16);
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(exists ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 4, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(exists ? 4 : 0)
                 : "memory");
  }
#endif
}

// As RowProduct. Rows: 1, 2, 4 or 8. Chunk: bytes that rows of codes may be copied at a time. x
// lies in shared memory, x_stride apart.
template <int Bits, int Columns, int Threads, int Chunk, int Rows>
class TensorRowProduct {
 public:
  static constexpr int kColumns = Columns, kThreads = Threads, kRows = Rows;
  static constexpr int kWidth = 16 / sizeof(__half);  // columns a thread of the share after it
  static constexpr int kWarps = Threads / 32;
  static constexpr int kDepth = kCodeRows;
  static constexpr int kRowBytes = Columns * Bits / 8, kScaleBytes = Columns * sizeof(__half);
  static constexpr int kStageBytes = kDepth * kRowBytes + kScaleBytes + kRowBytes;
  static constexpr int kStages = kTensorStageBytes / (kWarps * kStageBytes);
  static constexpr int kSums = kWarps * Rows * Columns;
  static constexpr int kSharedFloats = kSums + kWarps * kStages * kStageBytes / 4;
  static constexpr int kPendingCopies = kStages;
  static constexpr bool kReadsShared = true;

  __device__ TensorRowProduct(const Matrix& w, int first_column, int, int depth, const __half* x,
                              int x_stride, int = Rows)
      : codes_(static_cast<const char*>(w.data)),
        scales_(static_cast<const char*>(w.codes.scales)),
        zero_points_(static_cast<const char*>(w.codes.zero_points)),
        x_(x),
        x_stride_(x_stride),
        columns_(w.columns),
        first_column_(first_column),
        scale_rows_(block_rows(w.codes, w.depth) / kDepth),
        blocks_(depth / kDepth),
        flip_(w.codes.zero_points ? 0 : kHighest) {}

  // Of several rows each starts in other banks: four of them, 32 bytes each, are read together.
  __host__ __device__ static constexpr int64_t x_stride(int64_t width) {
    return Rows == 1 ? (width + 7) / 8 * 8 : (width + 63) / 64 * 64 + 16;
  }

  // shared: kSharedFloats floats, which finish gets again.
  __device__ void start_weights(float* shared) {
    stages_ = reinterpret_cast<char*>(shared + kSums) + warp() * (kStages * kStageBytes);
#pragma unroll 1  // code is read from memory too
    for (int i = 0; i < kStages; ++i) load(i);
  }
  __device__ void start_x() {}

  __device__ void finish(float* partial) {
    int stage = 0;
    for (int i = 0; warp() + i * kWarps < blocks_; ++i) {
      wait_for_copies_but<kStages - 1>();
      __syncwarp();  // the other lanes' copies too
      const int turn = i % kTurns;
      add(stages_ + stage * kStageBytes, warp() + i * kWarps, turn);
      if (turn == kTurns - 1 || warp() + (i + 1) * kWarps >= blocks_) take_scales();
      __syncwarp();
      load(i + kStages);
      if (++stage == kStages) stage = 0;
    }
    wait_for_copies();
    add_up(partial);
  }

 private:
  static constexpr int kTurns = 8 / Rows;
  static constexpr int kOwn = Columns / 8;         // columns of a lane, side by side
  static constexpr int kTiles = kOwn / 2;          // a lane has two of them in a product
  static constexpr int kKept = Rows == 1 ? 1 : 2;  // rows of x of a lane's sums
  static constexpr uint32_t kHighest = Bits == 4 ? 0x88888888u : 0x80808080u;
  static constexpr uint32_t kCode = Bits == 4 ? 0x000f000fu : 0x00ff00ffu;  // of two rows
  static constexpr float kUnit = 1 << 24;  // times 1 as bits of an fp16 number is 1
  static constexpr float kMiddle = 1 << (Bits - 1);
  static_assert(Columns == 32 || Columns == 64);
  static_assert(kStages >= 2 && kStageBytes % 16 == 0 && 8 % Rows == 0);

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int warp() { return threadIdx.x / 32; }

  // Starts the copies of the warp's block i, a group, in a stage of the ring; none beyond the last.
  // A stage has codes, scales, zero points. Codes of row 4 t + j of 16 lie at row 4 j + t, so that
  // four lanes' rows are in different banks.
  __device__ __forceinline__ void load(int number) {
    const int block = warp() + number * kWarps;
    if (block < blocks_) {
      char* stage = stages_ + number % kStages * kStageBytes;
      constexpr int kChunks = kRowBytes / Chunk;
      const int64_t row_bytes = int64_t{columns_} * Bits / 8;
      const int first_byte = first_column_ * Bits / 8;
      const char* codes = codes_ + block * kDepth * row_bytes;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int c = i * 32 + lane(), row = c / kChunks, byte = first_byte + c % kChunks * Chunk;
        const int place = row / 16 * 16 + row % 4 * 4 + row / 4 % 4;
        const bool exists = byte < row_bytes;
        copy_codes<Chunk>(stage + place * kRowBytes + c % kChunks * Chunk,
                          exists ? codes + row * row_bytes + byte : codes, exists);
      }
      const int64_t scale_row = block / scale_rows_;
      stage += kDepth * kRowBytes;
      for (int c = lane(); c < kScaleBytes / 16; c += 32) {
        const int column = first_column_ + c * 8;
        const bool exists = column < columns_;
        const char* from = scales_ + (scale_row * columns_ + (exists ? column : 0)) * 2;
        copy_codes<16>(stage + c * 16, from, exists);
      }
      if (zero_points_) {
        for (int c = lane(); c < kChunks; c += 32) {
          const int byte = first_byte + c * Chunk;
          const bool exists = byte < row_bytes;
          copy_codes<Chunk>(stage + kScaleBytes + c * Chunk,
                            zero_points_ + scale_row * row_bytes + (exists ? byte : 0), exists);
        }
      }
    }
    commit_copies();
  }

  // The codes of the lane's columns in 16 bits of two rows each: a register a tile, the first
  // column's in the lowest bits.
  __device__ __forceinline__ void pair(const char* row, const char* next,
                                       uint32_t (&pairs)[kTiles]) const {
    if constexpr (Bits == 4 && kOwn == 4) {
      const uint32_t half = lane() / 4 % 2 ? 0x7632 : 0x5410;
      pairs[0] = __byte_perm(word(row, lane() / 8), word(next, lane() / 8), half);
      pairs[1] = pairs[0] >> 8;
    } else if constexpr (Bits == 4) {
      const uint32_t one = word(row, lane() / 4), other = word(next, lane() / 4);
      pairs[0] = __byte_perm(one, other, 0x5410);
      pairs[1] = pairs[0] >> 8;
      pairs[2] = __byte_perm(one, other, 0x7632);
      pairs[3] = pairs[2] >> 8;
    } else {
      constexpr int kWords = kOwn / 4;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const int at = lane() / 4 * kWords + i;
        const uint32_t one = word(row, at), other = word(next, at);
        pairs[2 * i] = __byte_perm(one, other, 0x5410);
        pairs[2 * i + 1] = __byte_perm(one, other, 0x7632);
      }
    }
  }
  __device__ __forceinline__ static uint32_t word(const char* row, int at) {
    return reinterpret_cast<const uint32_t*>(row)[at];
  }
  __device__ __forceinline__ uint32_t first_of(uint32_t pair) const {
    return (pair ^ flip_) & kCode;
  }
  __device__ __forceinline__ uint32_t second_of(uint32_t pair) const {
    return Bits == 4 ? (pair ^ flip_) & kCode << 4 : ((pair ^ flip_) >> 8) & kCode;
  }

  // Adds the products of a block of W, whose columns of the right factor are those of this turn.
  __device__ __forceinline__ void add(const char* stage, int block, int turn) {
    const int n = lane() / 4, member = lane() % 4;
    const bool is_turn = n / Rows == turn;
    const __half* x = x_ + n % Rows * x_stride_ + block * kDepth + member * 4;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint2 right = *reinterpret_cast<const uint2*>(x + k);
      if (!is_turn) right = make_uint2(0, 0);
      const char* row = stage + (k + member) * kRowBytes;
      uint32_t upper[kTiles], lower[kTiles];
      pair(row, row + 4 * kRowBytes, upper);
      pair(row + 8 * kRowBytes, row + 12 * kRowBytes, lower);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const uint32_t left[4] = {first_of(upper[m]), second_of(upper[m]), first_of(lower[m]),
                                  second_of(lower[m])};
        multiply_add<__half>(sum_[m], left, right.x, right.y);
      }
      constexpr uint32_t kOnes = 0x3c003c00u;
      const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
      multiply_add<__half>(x_sum_, ones, right.x, right.y);
    }
    const char* scales = stage + kDepth * kRowBytes;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if ((member * 2 + e) / Rows != turn) continue;
      scale_[e] = *reinterpret_cast<const Pack<__half, kOwn>*>(scales + n * sizeof(scale_[e]));
      if (zero_points_) {
        zero_[e] = *reinterpret_cast<const Zeros*>(scales + kScaleBytes + n * sizeof(Zeros));
      }
    }
  }

  // Ends the turns: total += scale (sum of x u - zero point times the sum of x).
  __device__ __forceinline__ void take_scales() {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float of_x = x_sum_[e];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const float unit = Bits == 4 && j % 2 ? kUnit / 16 : kUnit;
        float zero = kMiddle;
        if (zero_points_) zero = static_cast<float>(zero_[e].code(j));
        const float sum = fmaf(sum_[j / 2][j % 2 * 2 + e], unit, -zero * of_x);
        float& total = total_[j][e % kKept];
        total = fmaf(to_float(scale_[e].values[j]), sum, total);
      }
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum_[m][i] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) x_sum_[i] = 0.f;
  }

  __device__ __forceinline__ void add_up(float* partial) const {
    const int member = lane() % 4;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
#pragma unroll
      for (int e = 0; e < kKept; ++e) {
        float sum = total_[j][e];
        if constexpr (Rows <= 2) sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        if constexpr (Rows <= 4) sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (member * 2 + e < Rows) {
          partial[(warp() * Rows + member * 2 + e) * Columns + lane() / 4 * kOwn + j] = sum;
        }
      }
    }
    add_up_warps<Rows * Columns, Threads>(partial);
  }

  struct alignas(kOwn* Bits / 8) Zeros {
    unsigned char bytes[kOwn * Bits / 8];
    __device__ __forceinline__ int code(int j) const {
      return Bits == 8 ? bytes[j] : bytes[j / 2] >> (j % 2 * 4) & 15;
    }
  };

  const char *const codes_, *const scales_, *const zero_points_;
  const __half* const x_;
  const int x_stride_, columns_, first_column_, scale_rows_, blocks_;
  const uint32_t flip_;
  char* stages_ = nullptr;
  float sum_[kTiles][4] = {}, x_sum_[4] = {}, total_[kOwn][kKept] = {};
  Pack<__half, kOwn> scale_[2] = {};
  Zeros zero_[2] = {};
};

}  // namespace mamba
