// A warp's ring of blocks of codes in shared memory, which tensor_gemv.cuh multiplies: blocks of
// kCodeRows rows of a block's columns, with their scales and zero points, in the order that tensor
// cores take them.
//
// Warps share out the blocks of W: a warp's block of a number is block warp + number * Warps.
#pragma once

#include "common/cuda/mma.cuh"
#include "layer/cuda/codes.h"
#include "layer/cuda/gemv.cuh"

namespace mamba {

// Queues a copy of Bytes to shared memory, of zeros where nothing exists there. L2 fetches whole
// lines, whose other parts neighbours are asking for.
template <int Bytes>
__device__ __forceinline__ void copy_codes(void* to, const void* from, bool exists) {
#ifdef MAMBA_HAVE_MMA
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(exists ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], %3, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(exists ? Bytes : 0), "n"(Bytes)
                 : "memory");
  }
#endif
}

// RowChunk: bytes that rows of codes may be copied at a time. RingBytes: of all warps' rings.
template <int Bits, int Columns, int Warps, int RowChunk, int RingBytes>
class CodeRing {
 public:
  static constexpr int kDepth = kCodeRows;
  // Of a stage: codes, of 16 bytes of a row, those of all rows side by side; scales; zero points.
  static constexpr int kRowBytes = Columns * Bits / 8, kScaleBytes = Columns * sizeof(__half);
  static constexpr int kGroups = kRowBytes / 16;  // whole ones, of 16 bytes of a row
  // Half a group may be left over. A pair of stages shares groups of the two: 8 bytes of a row of
  // the first, then 8 of the second.
  static constexpr bool kHasHalf = kRowBytes % 16 != 0;
  static constexpr int kScalesAt = kDepth * kRowBytes, kZeroPointsAt = kScalesAt + kScaleBytes;
  static constexpr int kStageBytes = (kZeroPointsAt + kRowBytes + 15) / 16 * 16;
  static constexpr int kStages = RingBytes / (Warps * kStageBytes) / 2 * 2;
  static constexpr int kSharedBytes = Warps * kStages * kStageBytes;
  static_assert(kStages >= 2 && kRowBytes % 8 == 0 && kScalesAt % 16 == 0);

  __device__ CodeRing(const Matrix& w, int first_column, int depth)
      : row_bytes_(w.columns * Bits / 8),
        first_byte_(first_column * Bits / 8),
        codes_(static_cast<const char*>(w.data) + int64_t{warp()} * kDepth * row_bytes_),
        scales_(static_cast<const char*>(w.codes.scales)),
        zero_points_(static_cast<const char*>(w.codes.zero_points)),
        columns_(w.columns),
        scale_rows_(block_rows(w.codes, w.depth) / kDepth),
        blocks_(depth / kDepth) {}

  // Whether the warp has a block of this number.
  __device__ __forceinline__ bool has(int number) const { return block(number) < blocks_; }
  __device__ __forceinline__ static int first_row(int number) { return block(number) * kDepth; }
  __device__ __forceinline__ const char* stage(int at) const { return stages_ + at * kStageBytes; }
  // Where a pair of stages, counted from the first one, has its half groups of a place.
  __device__ __forceinline__ static int half_at(int place) {
    constexpr int kOfStage = kDepth / 2, kAt = kDepth * kGroups * 16;
    return kAt + place * 16 + (place < kOfStage ? 0 : kStageBytes - kOfStage * 16);
  }
  __device__ __forceinline__ bool has_zero_points() const { return zero_points_; }

  // Starts the copies of the first stages. shared: kSharedBytes, of all warps.
  __device__ __forceinline__ void start(char* shared) {
    stages_ = shared + warp() * (kStages * kStageBytes);
#pragma unroll 1  // code is read from memory too
    for (int i = 0; i < kStages; ++i) load(i, i);
  }

  // Starts the copies of the warp's next block, which has this number, into a stage: a group; an
  // empty one where there is no such block.
  __device__ __forceinline__ void load(int number, int at) {
    if (has(number)) {
      char* stage = stages_ + at * kStageBytes;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int chunk = i * 32 + lane(), row = chunk / kChunks, own = chunk % kChunks * kChunk;
        const int byte = first_byte_ + own;
        const bool exists = byte < row_bytes_;
        char* to = stage + (own / 16 * kDepth + place(row)) * 16 + own % 16;
        if (kHasHalf && own >= kGroups * 16) {
          const int second = at % 2;
          to = stage - second * kStageBytes + half_at(place(row)) + second * 8 + own % 16;
        }
        copy_codes<kChunk>(to, codes_ + (exists ? row * row_bytes_ + byte : 0), exists);
      }
      codes_ += int64_t{Warps} * kDepth * row_bytes_;
      load_scales(scale_rows_ == 1 ? block(number) : block(number) / scale_rows_, stage);
    }
    commit_copies();
  }

 private:
  static constexpr int kChunk = RowChunk == 16 && kHasHalf ? 8 : RowChunk;
  static constexpr int kChunks = kRowBytes / kChunk;
  static_assert(kChunks <= 32);

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int block(int number) { return warp() + number * Warps; }
  // Where a stage keeps a row of a block: so that a lane's numbers of x, rows 8 t to 8 t + 7, are
  // those of the four tiles that load_tiles_transposed reads.
  __device__ static int place(int row) { return row % 8 / 2 * 8 + row / 8 * 2 + row % 2; }

  __device__ __forceinline__ void load_scales(int row, char* stage) const {
    if (lane() < kScaleBytes / 16) {
      const int column = first_byte_ * 8 / Bits + lane() * 8;
      const bool exists = column < columns_;
      const char* from = scales_ + (int64_t{row} * columns_ + (exists ? column : 0)) * 2;
      copy_codes<16>(stage + kScalesAt + lane() * 16, from, exists);
    }
    if (zero_points_ && lane() < kChunks) {
      const int byte = first_byte_ + lane() * kChunk;
      const bool exists = byte < row_bytes_;
      const char* from = zero_points_ + int64_t{row} * row_bytes_ + (exists ? byte : 0);
      copy_codes<kChunk>(stage + kZeroPointsAt + lane() * kChunk, from, exists);
    }
  }

  const int row_bytes_, first_byte_;
  const char* codes_;  // of the warp's block that is copied next
  const char *const scales_, *const zero_points_;
  const int columns_, scale_rows_, blocks_;
  char* stages_ = nullptr;
};

}  // namespace mamba
