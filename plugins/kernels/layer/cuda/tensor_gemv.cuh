// RowProduct, of gemv.cuh, for fp16 and a matrix of codes, on the tensor cores of sm_80 and later:
// for up to 8 rows, at about one instruction a weight, where CUDA cores take three.
//
// Codes come through a warp's ring in shared memory (code_ring.cuh), so that most of a block's
// bytes are on their way before the kernel ahead has ended and no register is spent on them. W is
// the left factor, transposed: one load of tiles brings a lane 32 codes of 4 bits, those of two
// rows in a register. A code u, counted from the smallest, is taken as the bits of an fp16 number:
// u 2^-24, a subnormal number, which the products are exact with. Where a lane's code lies four
// bits higher the number is 16 times as large. What a weight's code is counted from comes off at
// the end of a block of scales, as so many times the sum of x, which one more product with ones
// gives.
//
// The eight columns of the right factor are the rows of x. A single row takes turns: column n is of
// the block n of eight of the warp's, and is 0 in the others. So x is read, its sums are made, and
// scales are multiplied with once in eight blocks. Of 64 columns two blocks take 165 instructions
// of a warp then, of which 112 widen codes and multiply (sm_90; 215 with each done in every block).
#pragma once

#include "common/cuda/mma.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/block_sums.cuh"
#include "layer/cuda/code_ring.cuh"
#include "layer/cuda/gemv.cuh"

namespace mamba {

// As RowProduct. Rows: 1 or 8. Chunk: bytes that rows of codes may be copied at a time. x lies in
// shared memory, x_stride apart.
template <int Bits, int Columns, int Threads, int Chunk, int RingBytes, int Rows>
class TensorRowProduct {
 public:
  static constexpr int kColumns = Columns, kThreads = Threads, kRows = Rows;
  static constexpr int kWidth = 16 / sizeof(__half);  // columns a thread of the share after it
  static constexpr int kWarps = Threads / 32;
  using Ring = CodeRing<Bits, Columns, kWarps, Chunk, RingBytes>;
  static constexpr int kStages = Ring::kStages;
  static constexpr int kSums = kWarps * Rows * Columns;
  static constexpr int kSharedFloats = kSums + Ring::kSharedBytes / 4;
  static constexpr int kPendingCopies = kStages;
  static constexpr bool kReadsShared = true;

  __device__ TensorRowProduct(const Matrix& w, int first_column, int, int depth, const __half* x,
                              int x_stride, int = Rows)
      : ring_(w, first_column, depth),
        x_(x + (Rows == 1 ? 0 : lane() / 4 * x_stride) + lane() % 4 * 8),
        flip_(w.codes.zero_points ? 0 : kHighest) {}

  // Of several rows two in a row lie in different banks: 64 bytes of each are read together.
  __host__ __device__ static constexpr int64_t x_stride(int64_t width) {
    return Rows == 1 ? (width + 7) / 8 * 8 : (width + 63) / 64 * 64 + 32;
  }

  // shared: kSharedFloats floats, which finish gets again.
  __device__ __forceinline__ void start_weights(float* shared) {
    ring_.start(reinterpret_cast<char*>(shared + kSums));
  }
  __device__ void start_x() {}

  __device__ __forceinline__ void finish(float* partial) {
    int stage = 0;
#pragma unroll 1
    for (int first = 0; ring_.has(first); first += kTurns) {
      if constexpr (Rows == 1) start_turns(first);
#pragma unroll 1
      for (int i = first; i < first + kTurns && ring_.has(i); i += 2) {
        wait_for_copies_but<kStages - 2>();
        __syncwarp();  // the other lanes' copies too
        if constexpr (Rows == 1) {
          add_turns(i, i - first, stage);
        } else {
          add(i, stage);
          add(i + 1, stage + 1);
        }
        __syncwarp();
        ring_.load(i + kStages, stage);
        ring_.load(i + 1 + kStages, stage + 1);
        if ((stage += 2) == kStages) stage = 0;
      }
      if constexpr (Rows == 1) end_turns();
    }
    wait_for_copies();
    add_up(partial);
  }

 private:
  static constexpr int kTurns = 8;  // blocks of the warp that share sums, where there is one row
  static constexpr int kGroups = Ring::kGroups, kGroupTiles = 8 / Bits;  // tiles read together
  static constexpr int kWholeTiles = kGroups * kGroupTiles;
  static constexpr int kTiles = kWholeTiles + (Ring::kHasHalf ? kGroupTiles : 0);
  static constexpr int kKept = Rows == 1 ? 1 : 2;  // rows of x of a lane's sums
  static constexpr uint32_t kHighest = Bits == 4 ? 0x88888888u : 0x80808080u;
  static constexpr uint32_t kCode = Bits == 4 ? 0x000f000fu : 0x00ff00ffu;  // of two rows
  static constexpr float kUnit = 1 << 24;  // times 1 as bits of an fp16 number is 1
  static constexpr float kMiddle = 1 << (Bits - 1);
  static_assert(Ring::kHasHalf ? Rows == 1 && Bits == 4 : Rows == 1 || Rows == 8);

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int warp() { return threadIdx.x / 32; }

  // A lane's two columns of a tile, which lie side by side: the first one.
  __device__ static int column_of(int tile) {
    const int n = lane() / 4;
    if (tile >= kWholeTiles) return kGroups * 32 + n % 4 * 4 + tile % 2 * 2;
    return Bits == 4 ? tile / 2 * 32 + n * 4 + tile % 2 * 2 : tile * 16 + n * 2;
  }
  // (pair ^ flip) & mask, in one instruction.
  __device__ __forceinline__ uint32_t flipped(uint32_t pair, uint32_t mask) const {
    uint32_t codes;
    asm("lop3.b32 %0, %1, %2, %3, 0x28;" : "=r"(codes) : "r"(pair), "r"(flip_), "r"(mask));
    return codes;
  }
  __device__ __forceinline__ uint32_t first_of(uint32_t pair) const { return flipped(pair, kCode); }
  __device__ __forceinline__ uint32_t second_of(uint32_t pair) const {
    return Bits == 4 ? flipped(pair, kCode << 4) : flipped(pair >> 8, kCode);
  }

  // The numbers of x of the warp's block of a number that are the lane's; 0 where there is none.
  __device__ __forceinline__ uint4 x_of(int number) const {
    if (!ring_.has(number)) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(x_ + Ring::first_row(number));
  }
  // x_sum += the sums of the columns of the right factor.
  __device__ __forceinline__ void add_x(const uint4& right) {
    constexpr uint32_t kOnes = 0x3c003c00u;
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
    multiply_add<__half>(x_sum_, ones, right.x, right.y);
    multiply_add<__half>(x_sum_, ones, right.z, right.w);
  }
  // sum += the codes of a stage times the right factor.
  __device__ __forceinline__ void add_codes(const char* stage, const uint4& right) {
#pragma unroll
    for (int c = 0; c < kGroups; ++c) {
      add_group(shared_address(stage) + c * (Ring::kDepth * 16) + lane() * 16, c, right);
    }
  }
  __device__ __forceinline__ void add_group(uint32_t from, int group, const uint4& right) {
    uint32_t pairs[4];
    load_tiles_transposed(from, pairs);
#pragma unroll
    for (int half = 0; half < kGroupTiles; ++half) {
#pragma unroll
      for (int k = 0; k < 4; k += 2) {
        const uint32_t upper = pairs[k] >> (half * 8), lower = pairs[k + 1] >> (half * 8);
        const uint32_t left[4] = {first_of(upper), second_of(upper), first_of(lower),
                                  second_of(lower)};
        multiply_add<__half>(sum_[group * kGroupTiles + half], left, k ? right.z : right.x,
                             k ? right.w : right.y);
      }
    }
  }

  // Several rows: the warp's block of a number.
  __device__ __forceinline__ void add(int number, int at) {
    if (!ring_.has(number)) return;
    const uint4 x = x_of(number);
    clear();
    add_x(x);
    add_codes(ring_.stage(at), x);
    read(scale_[0], ring_.stage(at), 0);
    take(scale_[0], scale_[0]);
  }

  // A single row: the warp's blocks from `first` on take turns. A lane keeps its column's numbers
  // of x: those of one block.
  __device__ __forceinline__ void start_turns(int first) {
    clear();
    scale_[0] = scale_[1] = Scales();
    turn_x_ = x_of(first + lane() / 4);
    add_x(turn_x_);
  }
  // Two of them; of the second, where there is none, x and scale are 0.
  __device__ __forceinline__ void add_turns(int number, int turn, int at) {
#pragma unroll
    for (int i = 0; i < 2; ++i) add_codes(ring_.stage(at + i), x_where(lane() / 4 == turn + i));
    if constexpr (Ring::kHasHalf) {
      // Rows of the left factor are columns of the one block, then of the other. Each is wanted of
      // one of the two columns of the right factor: of the other one its scale stays 0.
      add_group(shared_address(ring_.stage(at)) + Ring::half_at(lane()), kGroups,
                x_where(lane() / 8 == turn / 2));
    }
    if (lane() % 4 == turn / 2) {
      read(scale_[0], ring_.stage(at), 0);
      if (ring_.has(number + 1)) read(scale_[1], ring_.stage(at + 1), 1);
    }
  }
  __device__ __forceinline__ uint4 x_where(bool is_turn) const {
    const uint32_t mask = is_turn ? ~0u : 0u;
    return make_uint4(turn_x_.x & mask, turn_x_.y & mask, turn_x_.z & mask, turn_x_.w & mask);
  }
  __device__ __forceinline__ void end_turns() { take(scale_[0], scale_[1]); }

  // Of the lane's columns, of one block of scales.
  struct Scales {
    __half2 scale[kTiles] = {};
    unsigned short zero[kTiles] = {};  // two codes
  };
  // second: 1 of the second stage of a pair, else 0.
  __device__ __forceinline__ void read(Scales& of, const char* stage, int second) const {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (m >= kWholeTiles && lane() / 16 != second) continue;
      of.scale[m] = *reinterpret_cast<const __half2*>(stage + Ring::kScalesAt + column_of(m) * 2);
    }
    if (!ring_.has_zero_points()) return;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const char* from = stage + Ring::kZeroPointsAt + column_of(m) * Bits / 8;
      of.zero[m] = Bits == 4 ? *reinterpret_cast<const unsigned char*>(from)
                             : *reinterpret_cast<const unsigned short*>(from);
    }
  }

  // total += scale (sum of x u - zero point times the sum of x); scales of the lane's two columns
  // of the right factor.
  __device__ __forceinline__ void take(const Scales& first, const Scales& second) {
    if (ring_.has_zero_points()) {
      take<true>(first, second);
    } else {
      take<false>(first, second);
    }
  }
  template <bool HasZeroPoints>
  __device__ __forceinline__ void take(const Scales& first, const Scales& second) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const Scales& of = e ? second : first;
      const float middle = kMiddle * x_sum_[e];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const float2 scale = __half22float2(of.scale[m]);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float unit = Bits == 4 && j ? kUnit / 16 : kUnit;
          float off = middle;
          if constexpr (HasZeroPoints) {
            off = static_cast<float>(of.zero[m] >> (j * Bits) & ((1 << Bits) - 1)) * x_sum_[e];
          }
          float& total = total_[m][j][e % kKept];
          total = fmaf(j ? scale.y : scale.x, fmaf(sum_[m][j * 2 + e], unit, -off), total);
        }
      }
    }
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) sum_[m][i] = 0.f;
      x_sum_[i] = 0.f;
    }
  }

  __device__ __forceinline__ void add_up(float* partial) const {
    const int member = lane() % 4;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < kKept; ++e) {
          float sum = total_[m][j][e];
          if constexpr (Rows == 1) {
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (m >= kWholeTiles) sum += __shfl_xor_sync(0xffffffffu, sum, 16);
          }
          if (Rows > 1 || (member == 0 && (m < kWholeTiles || lane() < 16))) {
            const int row = Rows == 1 ? 0 : member * 2 + e;
            partial[(warp() * Rows + row) * Columns + column_of(m) + j] = sum;
          }
        }
      }
    }
    add_up_warps<Rows * Columns, Threads>(partial);
  }

  Ring ring_;
  const __half* const x_;
  const uint32_t flip_;
  float sum_[kTiles][4] = {}, x_sum_[4] = {}, total_[kTiles][2][kKept] = {};
  // Of one row: the lane's numbers of x, and the scales of the turns of its columns of the right
  // factor.
  uint4 turn_x_ = {};
  Scales scale_[2];
};

}  // namespace mamba
