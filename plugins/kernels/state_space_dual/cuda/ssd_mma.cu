// State space duality in 16 bits on the tensor cores of sm_80 and later, in chunks of 64 steps
// (arXiv:2405.21060, section 6, the block decomposition).
//
// A block has kRows channels of a head, a warp 16 of them with all of their states, in fp32
// registers, from chunk to chunk. A chunk is four products:
//
//   S = C B^T                        its lower half, in 16 by 16 tiles that the warps share out
//   Y^T = (h C^T) decay + X^T M^T    M is S times the decays between two steps and dt
//   h = decay h + (weighted X)^T B
//
// Y is transposed so that h and X^T are the left factors, straight from registers. M passes through
// shared memory, where C was; a warp writes its channels of Y over those of X.
#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "common/cuda/mma.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "common/sizes.h"
#include "state_space_dual/cuda/ssd_decay.cuh"

namespace mamba {
namespace {

constexpr int kChunk = kSsdChunk;
constexpr int kVector = 8;  // numbers of 16 bits that lie in 16 bytes
constexpr int kTriangle = kSsdChunkBlocks * (kSsdChunkBlocks + 1) / 2;  // tiles of S
constexpr float kLargestHalf = 65504.f;

// A tile of kChunk rows of Columns numbers. Vectors change places within a row, so that the eight
// rows of a fragment lie in different banks.
template <typename T, int Columns>
struct SharedTile {
  static constexpr unsigned kVectors = Columns / kVector;
  // Rows whose first vectors share banks are kPeriod apart.
  static constexpr unsigned kGroup = kVectors % 8 == 0 ? 8 : kVectors % 4 == 0 ? 4 : 2;
  static constexpr unsigned kPeriod = 8 / kGroup;
  static_assert(kVectors % 2 == 0);

  T numbers[kChunk * Columns];

  // Unsigned, so that the compiler sees what a lane's rows have in common.
  __device__ __forceinline__ T* vector(unsigned row, unsigned index) {
    return numbers + (row * kVectors + (index ^ (row / kPeriod % kGroup))) * kVector;
  }

  // The address of a vector that lies `pairs` pairs of vectors and `rows` rows, a multiple of 8,
  // from one of a row's first two: constants cost next to nothing here.
  static __device__ __forceinline__ uint32_t apart(uint32_t from, unsigned pairs, unsigned rows) {
    static_assert(kGroup != 4);
    constexpr unsigned kPair = 2 * kVector * sizeof(T), kPairs = kGroup == 8 ? 4 : 1;
    // Within a group places are exchanged, which is an exclusive or of addresses too.
    return (from ^ pairs % kPairs * kPair) + pairs / kPairs * kPairs * kPair +
           rows * kVectors * kVector * unsigned{sizeof(T)};
  }
};

template <typename T, typename S>
struct Shared {
  SharedTile<T, S::kStates> B;
  union {
    SharedTile<T, S::kStates> C;
    SharedTile<T, kChunk> M;  // once C is no longer needed
  };
  SharedTile<T, S::kRows> X;  // then Y
  SsdDecays decays[2];        // of this chunk and the next
};

// What a block works on.
struct Place {
  int part;
  int64_t batch, head, group, channel;  // the first channel of the block
  int64_t begin, end;                   // steps of the walk
};

template <typename T, typename S>
class Chunks {
 public:
  __device__ __forceinline__ Chunks(const mamba_state_space_dual_params& p, const SsdParts& parts,
                                    Shared<T, S>& shared)
      : p_(p), parts_(parts), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
    const auto tiles = static_cast<unsigned>((p.head_dim + S::kRows - 1) / S::kRows);
    // The grid is of 32 bits, and so is every factor of it: their divisions are short.
    const auto heads = static_cast<unsigned>(p.heads), batch = static_cast<unsigned>(p.batch);
    unsigned index = blockIdx.x;
    at_.channel = index % tiles * S::kRows;
    index /= tiles;
    const unsigned head = index % heads;
    at_.head = head;
    index /= heads;
    at_.batch = index % batch;
    at_.part = static_cast<int>(index / batch);
    at_.group = head / (heads / static_cast<unsigned>(p.n_groups));
    at_.begin = at_.part * parts.part_length;
    at_.end = at_.begin + parts.part_length < p.length ? at_.begin + parts.part_length : p.length;
    rows_ = static_cast<int>(p.head_dim - at_.channel < S::kRows ? p.head_dim - at_.channel
                                                                 : int64_t{S::kRows});
    if (parts.pass == kSsdStates) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_of(half) < rows_) skip_[half] = skip_at(p, at_.head, at_.channel + row_of(half));
    }
  }

  __device__ __forceinline__ void run() {
    const bool has_outputs = parts_.pass != kSsdStates;
    const float A = p_.A[at_.head], bias = p_.dt_bias[at_.head];
    let_next_kernel_start();
    load_chunk(at_.begin, has_outputs);
    if (warp_ == 0) {
      const SsdRawSteps raw = read_ssd_steps<T>(p_, at_.batch, at_.head, at_.begin, at_.end);
      prepare_ssd_decays<T>(p_, raw, A, bias, shared_.decays[0]);
    }
    if (parts_.pass == kSsdOutputs) wait_for_earlier_kernels();
    load_states();
    float whole_decay = 0.f;
    int chunk = 0;
    for (int64_t begin = at_.begin; begin < at_.end; begin += kChunk, ++chunk) {
      const int64_t next = begin + kChunk;
      const SsdDecays& decays = shared_.decays[chunk % 2];
      // The warps take turns; what one reads is under way while it computes this chunk.
      const bool prepares = warp_ == (chunk + 1) % S::kWarps && next < at_.end;
      if (next < at_.end) prefetch_x(next);
      SsdRawSteps raw = {};
      if (prepares) raw = read_ssd_steps<T>(p_, at_.batch, at_.head, next, at_.end);
      wait_for_copies();
      __syncthreads();
      whole_decay += decays.whole;
      uint32_t x[kSsdChunkBlocks][4];
      if (has_outputs) {
        outputs(decays, begin, x);
      } else {
        load_x(x);
        update(decays, 1.f, x);
      }
      if (prepares) prepare_ssd_decays<T>(p_, raw, A, bias, shared_.decays[(chunk + 1) % 2]);
      __syncthreads();
      if (next < at_.end) load_chunk(next, has_outputs);
    }
    store_states();
    if (parts_.pass == kSsdStates && threadIdx.x == 0 && at_.channel == 0) {
      parts_.decays[(at_.part * p_.batch + at_.batch) * p_.heads + at_.head] = whole_decay;
    }
  }

 private:
  using StatesTile = SharedTile<T, S::kStates>;

  // Queues the copies of a chunk; what does not exist is 0.
  __device__ __forceinline__ void load_chunk(int64_t begin, bool has_outputs) {
    const int64_t states = at_.group * p_.d_state;
    copy_rows(shared_.B, p_.B, begin, states, static_cast<int>(p_.d_state));
    if (has_outputs) copy_rows(shared_.C, p_.C, begin, states, static_cast<int>(p_.d_state));
    copy_rows(shared_.X, p_.x, begin, at_.head * p_.head_dim + at_.channel, rows_);
  }

  // Brings x of a chunk into the L2 cache, where other heads of the group bring B and C anyway.
  __device__ __forceinline__ void prefetch_x(int64_t begin) const {
    const int step = threadIdx.x;
    if (step >= steps_from(begin)) return;
    const T* x = row<T>(p_.x, at_.batch, walked(p_, begin + step));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(x + at_.head * p_.head_dim + at_.channel));
  }

  // Steps of a chunk that exist.
  __device__ __forceinline__ int steps_from(int64_t begin) const {
    return static_cast<int>(at_.end - begin < kChunk ? at_.end - begin : int64_t{kChunk});
  }

  // A thread has one vector of every kApart-th row, so that its addresses lie evenly apart.
  template <typename Tile>
  __device__ __forceinline__ void copy_rows(Tile& to, const mamba_sequence& from, int64_t begin,
                                            int64_t first, int count) {
    constexpr int kVectors = Tile::kVectors, kApart = S::kThreads / kVectors;
    static_assert(S::kThreads % kVectors == 0);
    const int index = threadIdx.x % kVectors, first_step = threadIdx.x / kVectors;
    const int steps = index * kVector < count ? steps_from(begin) : 0;
    const int64_t apart = p_.reverse ? -kApart * from.step_stride : kApart * from.step_stride;
    const T* there = row<T>(from, at_.batch, walked(p_, begin)) + first;
    const int64_t own = p_.reverse ? -first_step * from.step_stride : first_step * from.step_stride;
    const T* source = there + own + index * kVector;
#pragma unroll
    for (int k = 0; k < (kChunk + kApart - 1) / kApart; ++k, source += apart) {
      const int step = first_step + k * kApart;
      if (kChunk % kApart != 0 && step >= kChunk) break;
      const bool exists = step < steps;
      copy_async(to.vector(step, index), exists ? source : there, exists);
    }
  }

  // (channel, state) of the four numbers of tile t of h: 0 and 1 side by side, 2 and 3 eight
  // channels below.
  __device__ __forceinline__ int row_of(int half) const {
    return warp_ * 16 + lane_ / 4 + half * 8;
  }
  __device__ __forceinline__ int state_of(int tile) const { return tile * 8 + lane_ % 4 * 2; }

  // Of the first of this lane's states, in an array of all heads.
  __device__ __forceinline__ int64_t first_state() const {
    const int64_t head = at_.batch * p_.heads + at_.head;
    return (head * p_.head_dim + at_.channel + row_of(0)) * p_.d_state + state_of(0);
  }
  __device__ __forceinline__ float* part_states() const {
    return parts_.states + at_.part * p_.batch * p_.heads * p_.head_dim * p_.d_state;
  }

  // Calls visit(index, two neighbouring numbers of h) for those that exist.
  template <typename Visit>
  __device__ __forceinline__ void visit_states(Visit visit) {
    const int states = static_cast<int>(p_.d_state);  // even
    const int64_t first = first_state();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_of(half) >= rows_) continue;
#pragma unroll
      for (int t = 0; t < S::kStates / 8; ++t) {
        if (state_of(t) >= states) continue;
        visit(first + half * 8 * states + t * 8, h_[t][half * 2], h_[t][half * 2 + 1]);
      }
    }
  }

  __device__ __forceinline__ void load_states() {
#pragma unroll
    for (int t = 0; t < S::kStates / 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) h_[t][i] = 0.f;
    }
    if (parts_.pass == kSsdOutputs) {
      load_from(part_states());
    } else if (parts_.pass == kSsdWhole && p_.initial_state) {
      p_.initial_state_dtype == MAMBA_FP32 ? load_from(static_cast<const float*>(p_.initial_state))
                                           : load_from(static_cast<const T*>(p_.initial_state));
    }
  }

  template <typename R>
  __device__ __forceinline__ void load_from(const R* states) {
    visit_states([&](int64_t index, float& first, float& second) {
      const auto two = *reinterpret_cast<const Pack<R, 2>*>(states + index);
      first = to_float(two.values[0]);
      second = to_float(two.values[1]);
    });
  }

  template <typename R>
  __device__ __forceinline__ void store_to(R* states) {
    visit_states([&](int64_t index, float first, float second) {
      const Pack<R, 2> two = {{from_float<R>(first), from_float<R>(second)}};
      *reinterpret_cast<Pack<R, 2>*>(states + index) = two;
    });
  }

  __device__ __forceinline__ void store_states() {
    if (parts_.pass == kSsdStates) {
      store_to(part_states());
    } else if (parts_.pass == kSsdWhole || at_.part == parts_.count - 1) {
      p_.initial_state_dtype == MAMBA_FP32 ? store_to(static_cast<float*>(p_.last_state))
                                           : store_to(static_cast<T*>(p_.last_state));
    }
  }

  // y of a chunk, and the state after it.
  __device__ __forceinline__ void outputs(const SsdDecays& decays, int64_t begin,
                                          uint32_t (&x)[kSsdChunkBlocks][4]) {
    float scale = 1.f;
    uint32_t M[kTriangleOfWarp][4];
    bool overflows = mix(decays, scale, M);
    const float shrunk = shrink_states();
    float y[kChunk / 8][4] = {};
    multiply_states(y);
    // Behind the barrier no warp needs C any more.
    if constexpr (std::is_same_v<T, __half>) {
      // Numbers that fp16 cannot hold are rare: then all of the chunk's are made smaller.
      while (__syncthreads_or(overflows) && scale > 1e-36f) {
        scale *= 1.f / 256;
        overflows = mix(decays, scale, M);
      }
    } else {
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kTriangleOfWarp; ++i) {
      const int tile = warp_ + i * S::kWarps;
      if (tile < kTriangle) store_mixing(tile, M[i]);
    }
    __syncthreads();
    load_x(x);
    __syncwarp();  // before Y takes the place of X
    const float undone = 1.f / scale, grown = 1.f / shrunk, rescale = grown * scale;
    using M_tile = SharedTile<T, kChunk>;
    const uint32_t M_row = shared_address(shared_.M.vector(right_row(), right_vector()));
#pragma unroll
    for (int t = 0; t < kChunk / 8; ++t) {
      const float2 decay = two_at(decays.from_chunk, state_of(t));
      const float first = decay.x * rescale, second = decay.y * rescale;
      y[t][0] *= first;
      y[t][1] *= second;
      y[t][2] *= first;
      y[t][3] *= second;
    }
#pragma unroll
    for (int i = 0; i < kSsdChunkBlocks; ++i) {
#pragma unroll
      for (int j = 0; j <= i; ++j) {
        uint32_t right[4];
        load_tiles(M_tile::apart(M_row, j, i * 16), right);
        multiply_add<T>(y[i * 2], x[j], right[0], right[1]);
        multiply_add<T>(y[i * 2 + 1], x[j], right[2], right[3]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T* to = shared_.X.vector(lane_ / 4, warp_ * 2 + half) + lane_ % 4 * 2;
#pragma unroll
      for (int t = 0; t < kChunk / 8; ++t) {
        // A fragment of X^T holds x where one of Y^T holds y.
        const float2 own = unpack_two<T>(x[t / 2][t % 2 * 2 + half]);
        const uint32_t two = pack_two<T>(y[t][half * 2] * undone + skip_[half] * own.x,
                                         y[t][half * 2 + 1] * undone + skip_[half] * own.y);
        *reinterpret_cast<uint32_t*>(to + t * 8 * S::kRows) = transposed(two);
      }
    }
    __syncwarp();
    store_y(begin);
    update(decays, grown, x);
  }

  // fp16 holds no more than kLargestHalf: makes larger states of a warp smaller, and answers by how
  // much, a power of two.
  __device__ __forceinline__ float shrink_states() {
    if constexpr (!std::is_same_v<T, __half>) return 1.f;
    float most = 0.f;
#pragma unroll
    for (int t = 0; t < S::kStates / 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) most = fmaxf(most, fabsf(h_[t][i]));
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, apart));
    }
    float by = 1.f;
    while (most * by > kLargestHalf / 2 && by > 1e-36f) by *= 1.f / 256;
    if (by == 1.f) return by;
#pragma unroll
    for (int t = 0; t < S::kStates / 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) h_[t][i] *= by;
    }
    return by;
  }

  // Of a tile of 16 by 16 numbers of the right factor, stored as rows of its columns.
  __device__ __forceinline__ int right_row() const { return lane_ % 8 + lane_ / 16 * 8; }
  __device__ __forceinline__ int right_vector() const { return lane_ / 8 % 2; }

  // y = h C^T.
  __device__ __forceinline__ void multiply_states(float (&y)[kChunk / 8][4]) {
    const uint32_t C_row = shared_address(shared_.C.vector(right_row(), right_vector()));
#pragma unroll
    for (int n = 0; n < S::kStates / 16; ++n) {
      const uint32_t left[4] = {pack_two<T>(h_[n * 2][0], h_[n * 2][1]),
                                pack_two<T>(h_[n * 2][2], h_[n * 2][3]),
                                pack_two<T>(h_[n * 2 + 1][0], h_[n * 2 + 1][1]),
                                pack_two<T>(h_[n * 2 + 1][2], h_[n * 2 + 1][3])};
#pragma unroll
      for (int i = 0; i < kSsdChunkBlocks; ++i) {
        uint32_t right[4];
        load_tiles(StatesTile::apart(C_row, n, i * 16), right);
        multiply_add<T>(y[i * 2], left, right[0], right[1]);
        multiply_add<T>(y[i * 2 + 1], left, right[2], right[3]);
      }
    }
  }

  // The tiles of M of this warp, packed; whether one of their numbers is too large for T.
  static constexpr int kTriangleOfWarp = (kTriangle + S::kWarps - 1) / S::kWarps;
  __device__ __forceinline__ bool mix(const SsdDecays& decays, float scale,
                                      uint32_t (&M)[kTriangleOfWarp][4]) {
    float most = 0.f;
#pragma unroll
    for (int k = 0; k < kTriangleOfWarp; ++k) {
      const int tile = warp_ + k * S::kWarps;
      if (tile >= kTriangle) break;
      const int i = tile_row(tile), j = tile - i * (i + 1) / 2;
      const uint32_t C_row = shared_address(shared_.C.vector(i * 16 + lane_ % 16, lane_ / 16));
      const uint32_t B_row = shared_address(shared_.B.vector(j * 16 + right_row(), right_vector()));
      float scores[2][4] = {};
#pragma unroll
      for (int n = 0; n < S::kStates / 16; ++n) {
        uint32_t left[4], right[4];
        load_tiles(StatesTile::apart(C_row, n, 0), left);
        load_tiles(StatesTile::apart(B_row, n, 0), right);
        multiply_add<T>(scores[0], left, right[0], right[1]);
        multiply_add<T>(scores[1], left, right[2], right[3]);
      }
      float between = 0.f;  // whole blocks
      for (int block = j + 1; block < i; ++block) between += decays.blocks[block];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int to = lane_ / 4 + half * 8;
        const float from_block = decays.from_block[i * 16 + to];
        const float reach = exp2_fast(between + from_block) * scale;
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          const int from = t * 8 + lane_ % 4 * 2;
          float2 weight = two_at(decays.to_block_end, j * 16 + from);
          weight.x *= reach;
          weight.y *= reach;
          if (i == j) {
            const float2 before = two_at(decays.from_block, j * 16 + from);
            const float2 dt = two_at(decays.dt, j * 16 + from);
            weight.x = from <= to ? exp2_fast(from_block - before.x) * dt.x * scale : 0.f;
            weight.y = from + 1 <= to ? exp2_fast(from_block - before.y) * dt.y * scale : 0.f;
          }
          const float first = scores[t][half * 2] * weight.x;
          const float second = scores[t][half * 2 + 1] * weight.y;
          most = fmaxf(most, fmaxf(fabsf(first), fabsf(second)));
          M[k][t * 2 + half] = pack_two<T>(first, second);
        }
      }
    }
    return std::is_same_v<T, __half> && most > kLargestHalf;
  }

  __device__ __forceinline__ static float2 two_at(const float* numbers, int index) {
    return *reinterpret_cast<const float2*>(numbers + index);
  }

  __device__ __forceinline__ static int tile_row(int tile) {
    return (tile >= 1) + (tile >= 3) + (tile >= 6);
  }

  __device__ __forceinline__ void store_mixing(int tile, const uint32_t (&M)[4]) {
    const int i = tile_row(tile), j = tile - i * (i + 1) / 2;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T* at = shared_.M.vector(i * 16 + lane_ / 4 + half * 8, j * 2 + t) + lane_ % 4 * 2;
        *reinterpret_cast<uint32_t*>(at) = M[t * 2 + half];
      }
    }
  }

  // X^T of this warp's channels: a fragment for each 16 steps.
  __device__ __forceinline__ void load_x(uint32_t (&x)[kSsdChunkBlocks][4]) {
    const uint32_t X_row =
        shared_address(shared_.X.vector(right_row(), warp_ * 2 + right_vector()));
#pragma unroll
    for (int j = 0; j < kSsdChunkBlocks; ++j) {
      load_tiles_transposed(SharedTile<T, S::kRows>::apart(X_row, 0, j * 16), x[j]);
    }
  }

  // h = decay h + (weighted X)^T B, where h had been made smaller by 1 / grown.
  __device__ __forceinline__ void update(const SsdDecays& decays, float grown,
                                         uint32_t (&x)[kSsdChunkBlocks][4]) {
    const float scale = std::is_same_v<T, __half> ? decays.scale : 1.f;
    const float decay = exp2_fast(decays.whole) * grown / scale;
    const uint32_t B_row = shared_address(shared_.B.vector(lane_ % 16, lane_ / 16));
#pragma unroll
    for (int t = 0; t < S::kStates / 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) h_[t][i] *= decay;
    }
#pragma unroll
    for (int j = 0; j < kSsdChunkBlocks; ++j) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const float2 weight = two_at(decays.to_chunk_end, j * 16 + state_of(t));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t& two = x[j][t * 2 + half];
          const float2 own = unpack_two<T>(two);
          two = pack_two<T>(own.x * weight.x, own.y * weight.y);
        }
      }
#pragma unroll
      for (int n = 0; n < S::kStates / 16; ++n) {
        uint32_t right[4];
        load_tiles_transposed(StatesTile::apart(B_row, n, j * 16), right);
        multiply_add<T>(h_[n * 2], x[j], right[0], right[1]);
        multiply_add<T>(h_[n * 2 + 1], x[j], right[2], right[3]);
      }
    }
    if constexpr (std::is_same_v<T, __half>) {
      if (scale == 1.f) return;
#pragma unroll
      for (int t = 0; t < S::kStates / 8; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) h_[t][i] *= scale;
      }
    }
  }

  // The gate, and y to memory, 16 bytes at a time; a warp stores what it put.
  __device__ __forceinline__ void store_y(int64_t begin) {
    using Eight = Pack<T, kVector>;
    const int channel = warp_ * 16 + lane_ % 2 * kVector, first_step = lane_ / 2;
    const int steps = channel < rows_ ? steps_from(begin) : 0;
    const int64_t in_row = at_.head * p_.head_dim + at_.channel + channel;
    const int64_t step = walked(p_, begin + first_step), apart = p_.reverse ? -16 : 16;
    const int64_t width = p_.heads * p_.head_dim;
    T* y = static_cast<T*>(p_.y) + (at_.batch * p_.length + step) * width + in_row;
    const T* z = p_.z.data ? row<T>(p_.z, at_.batch, step) + in_row : nullptr;
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
      if (first_step + k * 16 >= steps) break;
      const T* put = shared_.X.vector(first_step + k * 16, channel / kVector);
      Eight eight = *reinterpret_cast<const Eight*>(put);
      if (z) {
        const Eight gate = *reinterpret_cast<const Eight*>(z + k * apart * p_.z.step_stride);
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
          const float value = to_float(eight.values[v]);
          eight.values[v] = from_float<T>(value * silu<T>(to_float(gate.values[v])));
        }
      }
      *reinterpret_cast<Eight*>(y + k * apart * width) = eight;
    }
  }

  const mamba_state_space_dual_params& p_;
  const SsdParts& parts_;
  Shared<T, S>& shared_;
  const unsigned warp_, lane_;
  Place at_;
  int rows_;                    // channels of the block that exist
  float skip_[2] = {};          // of this lane's channels
  float h_[S::kStates / 8][4];  // of this warp's 16 channels
};

template <typename T, typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    ssd_mma_kernel(const __grid_constant__ mamba_state_space_dual_params p,
                   const __grid_constant__ SsdParts parts) {
#ifdef MAMBA_HAVE_MMA
  extern __shared__ __align__(128) unsigned char bytes[];
  Chunks<T, S>(p, parts, *reinterpret_cast<Shared<T, S>*>(bytes)).run();
#endif
}

template <typename T, typename S>
cudaError_t launch(const mamba_state_space_dual_params& p, const SsdParts& parts,
                   cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<T, S>);
  const int64_t tiles = (p.head_dim + S::kRows - 1) / S::kRows;
  const int64_t count = parts.pass == kSsdStates ? parts.count - 1 : parts.count;
  const int64_t blocks = product(tiles, p.heads, p.batch, count);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const auto kernel = ssd_mma_kernel<T, S>;
  if (cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  // Over a part its first chunk is on its way while the states before it are still computed.
  const bool overlaps = parts.pass == kSsdOutputs && current_gpu().major >= 9;
  return launch_overlapping(kernel, dim3(static_cast<unsigned>(blocks)), dim3(S::kThreads), kBytes,
                            stream, overlaps, p, parts);
}

template <typename T, int Rows>
cudaError_t launch(const mamba_state_space_dual_params& p, const SsdParts& parts,
                   cudaStream_t stream) {
  if (p.d_state <= 64) return launch<T, SsdMma<Rows, 64>>(p, parts, stream);
  if (p.d_state <= 128) return launch<T, SsdMma<Rows, 128>>(p, parts, stream);
  return launch<T, SsdMma<Rows, 256>>(p, parts, stream);
}

template <typename T>
cudaError_t launch(const mamba_state_space_dual_params& p, const SsdParts& parts,
                   cudaStream_t stream) {
  return p.head_dim > 64 && p.head_dim <= 80 ? launch<T, 80>(p, parts, stream)
                                             : launch<T, 64>(p, parts, stream);
}

}  // namespace

bool ssd_mma_fits(const mamba_state_space_dual_params& p, const Gpu& gpu) {
  constexpr int kBytes = 2;  // of a number
  return p.dtype != MAMBA_FP32 && gpu.major >= 8 && p.d_state >= kFewestSsdMmaStates &&
         p.d_state <= kMostSsdTileStates && p.d_state % kVector == 0 && p.head_dim % kVector == 0 &&
         rows_aligned<16>(p.x, kBytes) && rows_aligned<16>(p.B, kBytes) &&
         rows_aligned<16>(p.C, kBytes) && is_aligned<16>(p.y, 0, kBytes) &&
         (!p.z.data || rows_aligned<16>(p.z, kBytes)) &&
         is_aligned<16>(p.initial_state, 0, kBytes) && is_aligned<16>(p.last_state, 0, kBytes);
}

cudaError_t launch_ssd_mma(const mamba_state_space_dual_params& p, const SsdParts& parts,
                           cudaStream_t stream) {
  return p.dtype == MAMBA_FP16 ? launch<__half>(p, parts, stream)
                               : launch<__nv_bfloat16>(p, parts, stream);
}

}  // namespace mamba
