// The second kernel of a batch's token: see batch_token.cuh.
//
// kStateLanes neighbouring threads share a channel's states, four each, of every row of the block's
// that is theirs: the states wait in registers.
#pragma once

#include "common/cuda/decay.cuh"
#include "common/cuda/lanes.cuh"
#include "mamba_layer/cuda/batch_x_proj.cuh"

namespace mamba {
namespace batch {

constexpr int kStates = 16, kStateLanes = kStates / kFour;
constexpr int kSharesAtOnce = 4;  // that a thread asks for at once
constexpr int kDeep = 32;         // rows of dt_proj that the tensor cores take at a time

__host__ __device__ constexpr int in_full(int rank) { return (rank + kDeep - 1) / kDeep * kDeep; }

template <int Channels>
struct StateShared {
  int rank_stride;
  size_t rank, B_and_C, steps, u, z, bytes;

  __host__ __device__ explicit StateShared(int dt_rank) {
    rank_stride = apart(in_full(dt_rank));
    rank = 2 * in_full(dt_rank) * apart(Channels);
    B_and_C = rank + 2 * kBatchRows * rank_stride;
    steps = B_and_C + sizeof(float) * kBatchRows * 2 * kStates;
    u = steps + sizeof(float2) * kBatchRows * Channels;
    z = u + 2 * kBatchRows * Channels;
    bytes = z + 2 * kBatchRows * Channels;
  }
};

template <typename T, int Channels, int Blocks>
__global__ void __launch_bounds__(kThreads, Blocks)
    project_and_step(const __grid_constant__ BatchToken s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const mamba_layer_params& p = s.layer;
  const int rank = static_cast<int>(p.dt_rank), d_inner = static_cast<int>(p.d_inner);
  const StateShared<Channels> at(rank);
  T* weights = reinterpret_cast<T*>(shared);                       // (in_full(rank), kStride)
  T* rank_rows = reinterpret_cast<T*>(shared + at.rank);           // (kBatchRows, rank_stride)
  float* B_and_C = reinterpret_cast<float*>(shared + at.B_and_C);  // (kBatchRows, 2 kStates)
  float2* steps = reinterpret_cast<float2*>(shared + at.steps);    // (kBatchRows, Channels)
  T* u_tile = reinterpret_cast<T*>(shared + at.u);                 // the same
  T* z_tile = reinterpret_cast<T*>(shared + at.z);                 // the same; y, afterwards
  constexpr int kStride = apart(Channels), kVectors = Channels / kVector;
  let_next_kernel_start();

  const int first_channel = blockIdx.x * Channels, first_row = blockIdx.y * kBatchRows;
  const int rows = min(kBatchRows, s.rows - first_row);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // The kernel ahead started this one after its own wait: all that was queued before it is done.
#pragma unroll 1
  for (int i = threadIdx.x; i < in_full(rank) * kVectors; i += kThreads) {
    const int row = i / kVectors, place = i % kVectors * kVector;
    const T* from = static_cast<const T*>(p.dt_proj_weight) + first_channel + place;
    copy_async(weights + row * kStride + place, row < rank ? from + int64_t{row} * d_inner : from,
               row < rank);
  }
  const auto load_tile = [&](T* tile, const void* data, int64_t stride) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kBatchRows * kVectors; i += kThreads) {
      const int row = i / kVectors, place = i % kVectors * kVector;
      const T* from = static_cast<const T*>(data) + first_channel + place;
      copy_async(tile + i * kVector, row < rows ? from + (first_row + row) * stride : from,
                 row < rows);
    }
  };
  const auto load_gate = [&] {
    load_tile(z_tile, static_cast<const T*>(s.parts.xz) + d_inner, 2 * int64_t{d_inner});
  };
  if (s.gate_is_early) load_gate();

  constexpr int kTeams = kThreads / kStateLanes;      // threads that have different channels
  constexpr int kRowsAtOnce = kTeams / Channels;      // of the teams
  constexpr int kOwnRows = kBatchRows / kRowsAtOnce;  // of a thread: every kRowsAtOnce-th
  static_assert(kTeams % Channels == 0 && kOwnRows % kStateLanes == 0);
  const int member = threadIdx.x % kStateLanes, team = threadIdx.x / kStateLanes;
  const int place = team % Channels, channel = first_channel + place, own = team / Channels;
  const int64_t row_states = int64_t{d_inner} * kStates;
  const int64_t state_at =
      (int64_t{first_row + own} * d_inner + channel) * kStates + member * kFour;
  float4 h[kOwnRows];
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    h[i] = {};
    if (own + i * kRowsAtOnce < rows) {
      // Past the first-level cache, which may hold what this line was when an earlier kernel read
      // it.
      h[i] = __ldcg(reinterpret_cast<const float4*>(p.recurrent_state + state_at +
                                                    i * kRowsAtOnce * row_states));
    }
  }
  const float4 A =
      *reinterpret_cast<const float4*>(p.A + int64_t{channel} * kStates + member * kFour);
  const float D = p.D[channel];
  const int column = warp * 8 + lane % 4 * 2;  // of dt_proj's product, of the first kVectors warps
  float2 bias = {};
  if (warp < kVectors) bias = *reinterpret_cast<const float2*>(p.dt_bias + first_channel + column);
  const int r = threadIdx.x / kRowThreads, of_row = threadIdx.x % kRowThreads;
  for (int i = rank + of_row; i < in_full(rank); i += kRowThreads) {
    rank_rows[r * at.rank_stride + i] = from_float<T>(0.f);
  }
  wait_for_earlier_kernels();

  load_tile(u_tile, s.parts.u, d_inner);
  if (!s.gate_is_early) load_gate();
  const int64_t share_numbers = int64_t{s.rows} * s.width;
  const float* shares = s.parts.shares + int64_t{first_row + r} * s.width;
#pragma unroll 1
  for (int number = of_row * kFour; number < s.width; number += kRowThreads * kFour) {
    float4 sum = {};
#pragma unroll 1
    for (int first = 0; first < s.share_count && r < rows; first += kSharesAtOnce) {
      float4 parts[kSharesAtOnce] = {};
#pragma unroll
      for (int i = 0; i < kSharesAtOnce; ++i) {
        if (first + i >= s.share_count) continue;
        parts[i] =
            __ldcg(reinterpret_cast<const float4*>(shares + (first + i) * share_numbers + number));
      }
#pragma unroll
      for (int i = 0; i < kSharesAtOnce; ++i) add(sum, parts[i]);
    }
    if (number < rank) {
      const Pack<T, kFour> four = {from_float<T>(sum.x), from_float<T>(sum.y), from_float<T>(sum.z),
                                   from_float<T>(sum.w)};
      *reinterpret_cast<Pack<T, kFour>*>(rank_rows + r * at.rank_stride + number) = four;
    } else {
      *reinterpret_cast<float4*>(B_and_C + r * 2 * kStates + number - rank) = sum;
    }
  }
  wait_for_copies();
  __syncthreads();

  if (warp < kVectors) {
    float sum[4] = {};
    const uint32_t left_address =
        shared_address(rank_rows + lane % 16 * at.rank_stride + lane / 16 * kVector);
    const uint32_t right_address = shared_address(weights + lane * kStride + warp * kVector);
#pragma unroll 2
    for (int k = 0; k < rank; k += kDeep) {
      uint32_t left[2][4], right[4];
      load_tiles(left_address + 2 * k, left[0]);
      load_tiles(left_address + 2 * (k + 16), left[1]);
      load_tiles_transposed(right_address + 2 * k * kStride, right);
      multiply_add<T>(sum, left[0], right[0], right[1]);
      multiply_add<T>(sum, left[1], right[2], right[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int number = (lane / 4 + i / 2 * 8) * Channels + column + i % 2;
      const float dt = softplus<T>(sum[i] + (i % 2 ? bias.y : bias.x));
      steps[number] = make_float2(dt * kLog2e, dt * to_float(u_tile[number]));
    }
  }
  __syncthreads();

#pragma unroll
  for (int first = 0; first < kOwnRows; first += kStateLanes) {
    float y[kStateLanes];
#pragma unroll
    for (int j = 0; j < kStateLanes; ++j) {
      const int row = own + (first + j) * kRowsAtOnce;
      const float2 step = steps[row * Channels + place];
      const float4* rows_of = reinterpret_cast<const float4*>(B_and_C + row * 2 * kStates);
      const float4 B = rows_of[member], C = rows_of[kStateLanes + member];
      float4& state = h[first + j];
      state.x = Decay(step.x * A.x).of(state.x, step.y * B.x);
      state.y = Decay(step.x * A.y).of(state.y, step.y * B.y);
      state.z = Decay(step.x * A.z).of(state.z, step.y * B.z);
      state.w = Decay(step.x * A.w).of(state.w, step.y * B.w);
      y[j] = C.x * state.x + C.y * state.y + C.z * state.z + C.w * state.w;
      if (row < rows) {
        __stcs(reinterpret_cast<float4*>(p.last_recurrent_state + state_at +
                                         (first + j) * kRowsAtOnce * row_states),
               state);
      }
    }
    const float sum = sum_over_lanes<kStateLanes>(y, member);  // of row `member`
    const int number = (own + (first + member) * kRowsAtOnce) * Channels + place;
    const float out = (sum + D * to_float(u_tile[number])) * silu<T>(to_float(z_tile[number]));
    z_tile[number] = from_float<T>(out);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * kVectors; i += kThreads) {
    const int row = i / kVectors, number = i % kVectors * kVector;
    T* to =
        static_cast<T*>(s.parts.y) + int64_t{first_row + row} * d_inner + first_channel + number;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(z_tile + i * kVector);
  }
}

}  // namespace batch
}  // namespace mamba
