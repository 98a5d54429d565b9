// The pipelined scan (scan_pipe.cu): the warps that do the recurrence and the sums over the states.
#pragma once

#include "common/cuda/mma.cuh"
#include "selective_scan/cuda/scan_pipe_shape.cuh"

namespace mamba {
namespace pipe {

// Adds what the four lanes of a quad hold of one step, p, and of the next, q. Every lane gets both.
template <bool kKeepsRest>
__device__ __forceinline__ void add_quads(float p, float q, float& p_sum, float& q_sum) {
#if __CUDA_ARCH__ >= 800
  // Rows of the left matrix are a quad's step each, the right one is of ones; unused columns of the
  // result are copies.
  constexpr unsigned kOne = 0x3f800000;
  constexpr unsigned kTf32 = 0xffffe000;  // what the instruction reads of a number
  float copies[2];
  if constexpr (kKeepsRest) {
    const float p_rest = p - __uint_as_float(__float_as_uint(p) & kTf32);
    const float q_rest = q - __uint_as_float(__float_as_uint(q) & kTf32);
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %8}, {%9, %9, %9, %9};"
        : "=f"(p_sum), "=f"(copies[0]), "=f"(q_sum), "=f"(copies[1])
        : "r"(__float_as_uint(p)), "r"(__float_as_uint(q)), "r"(__float_as_uint(p_rest)),
          "r"(__float_as_uint(q_rest)), "r"(kOne), "f"(0.f));
  } else {
    asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=f"(p_sum), "=f"(copies[0]), "=f"(q_sum), "=f"(copies[1])
        : "r"(__float_as_uint(p)), "r"(__float_as_uint(q)), "r"(kOne), "f"(0.f));
  }
#else
#pragma unroll
  for (int apart = 1; apart < 4; apart *= 2) {
    p += __shfl_xor_sync(~0u, p, apart);
    q += __shfl_xor_sync(~0u, q, apart);
  }
  p_sum = p;
  q_sum = q;
#endif
}

// Sums over the quad's states of h C, for two channels at one step: h and C are this lane's.
template <int kStates>
__device__ __forceinline__ void multiply_states(const float (&h)[kStates],
                                                const float (&other_h)[kStates],
                                                const float (&C)[kStates], float& sum,
                                                float& other_sum) {
#if __CUDA_ARCH__ >= 800
  float d[4] = {};
#pragma unroll
  for (int j = 0; j < kStates; j += 2) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(h[j])), "r"(__float_as_uint(other_h[j])),
          "r"(__float_as_uint(h[j + 1])), "r"(__float_as_uint(other_h[j + 1])),
          "r"(__float_as_uint(C[j])), "r"(__float_as_uint(C[j + 1])));
  }
  sum = d[0];
  other_sum = d[2];
#else
  float own = 0.f, other = 0.f;
#pragma unroll
  for (int j = 0; j < kStates; ++j) {
    own += h[j] * C[j];
    other += other_h[j] * C[j];
  }
  add_quads<false>(own, other, sum, other_sum);
#endif
}

// One group of steps on its way through the consumers' loop.
template <typename S>
struct Loaded {
  float2 dt_du[S::kChannels][kGroup];
  float B[kGroup][S::kStates], C[kGroup][S::kStates];
};
template <typename S>
struct Ready {
  float decay[S::kChannels][kGroup][S::kStates], input[S::kChannels][kGroup][S::kStates];
  float C[kGroup][S::kStates];
};

template <typename S>
__device__ __forceinline__ void load(const typename S::Tile& tile, int group, int slot, int state,
                                     Loaded<S>& to) {
  using Numbers = Pack<float, S::kStates>;
#pragma unroll
  for (int t = 0; t < kGroup; ++t) {
    const int s = group * kGroup + t;
    const auto B = *reinterpret_cast<const Numbers*>(&tile.B[s][state]);
    const auto C = *reinterpret_cast<const Numbers*>(&tile.C[s][state]);
#pragma unroll
    for (int j = 0; j < S::kStates; ++j) {
      to.B[t][j] = B.values[j];
      to.C[t][j] = C.values[j];
    }
    const auto dt_du = *reinterpret_cast<const Pack<float2, S::kChannels>*>(&tile.dt_du[s][slot]);
#pragma unroll
    for (int c = 0; c < S::kChannels; ++c) to.dt_du[c][t] = dt_du.values[c];
  }
}

template <typename S>
__device__ __forceinline__ void make_ready(int group, const Loaded<S>& from,
                                           const float (&A)[S::kChannels][S::kStates],
                                           Ready<S>& to) {
#pragma unroll
  for (int t = 0; t < kGroup; ++t) {
#pragma unroll
    for (int j = 0; j < S::kStates; ++j) {
      to.C[t][j] = from.C[t][j];
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) {
        to.decay[c][t][j] = decay_of(from.dt_du[c][t].x, A[c][j], decay_shift(group * kGroup + t));
        to.input[c][t][j] = from.dt_du[c][t].y * from.B[t][j];
      }
    }
  }
}

// Where a row of y has the sum of this lane's quad; a warp's 32 lanes, of which 4 store a step
// each, then fill 8 neighbouring places of 4 rows.
template <typename S>
__device__ __forceinline__ int sum_at(int warp, int lane, int c) {
  return (warp * S::kChannels + c) * 8 + lane / 4;
}

// The recurrence over a group, and its sums to y.
template <typename T, typename S>
__device__ __forceinline__ void walk_group(const Ready<S>& ready, int group, int warp, int lane,
                                           float (&h)[S::kChannels][S::kStates],
                                           typename S::Tile& tile) {
  constexpr bool kKeepsRest = !std::is_same_v<T, __nv_bfloat16>;
  constexpr int kLast = S::kChannels - 1;
  float sums[S::kChannels][kGroup], y[S::kChannels][kGroup];
#pragma unroll
  for (int t = 0; t < kGroup; ++t) {
#pragma unroll
    for (int c = 0; c < S::kChannels; ++c) {
      y[c][t] = 0.f;
#pragma unroll
      for (int j = 0; j < S::kStates; ++j) {
        h[c][j] = ready.decay[c][t][j] * h[c][j] + ready.input[c][t][j];
        y[c][t] += ready.C[t][j] * h[c][j];
      }
    }
    // Two quads of lanes with different states would need different C.
    if constexpr (!kKeepsRest && S::kParts == 1) {
      float unused;
      multiply_states(h[0], h[kLast], ready.C[t], sums[0][t], kLast ? sums[kLast][t] : unused);
    }
  }
#pragma unroll
  for (int c = 0; c < S::kChannels; ++c) {
    if constexpr (kKeepsRest || S::kParts > 1) {
#pragma unroll
      for (int t = 0; t < kGroup; t += 2) {
        add_quads<kKeepsRest>(y[c][t], y[c][t + 1], sums[c][t], sums[c][t + 1]);
      }
    }
    const float low = lane & 1 ? sums[c][1] : sums[c][0];
    const float high = lane & 1 ? sums[c][3] : sums[c][2];
    tile.y[group * kGroup + lane % kGroup][sum_at<S>(warp, lane, c)] = lane & 2 ? high : low;
  }
}

template <typename T, typename S>
__device__ __forceinline__ void consume(const mamba_selective_scan_params& p, int64_t batch,
                                        int64_t first, int tile_count, int consumers,
                                        typename S::Tile* tiles) {
  const int thread = threadIdx.x;
  const int warp = thread / 32, lane = thread % 32;
  const int slot = thread / S::kLanes * S::kChannels;
  const int state = thread % S::kLanes * S::kStates;
  const int threads = consumers + S::kRoleThreads;  // of a hand-over
  float A[S::kChannels][S::kStates], h[S::kChannels][S::kStates];
#pragma unroll
  for (int c = 0; c < S::kChannels; ++c) {
    const int64_t channel = first + slot + c;
#pragma unroll
    for (int j = 0; j < S::kStates; ++j) {
      const int n = state + j;
      const bool exists = channel < p.d_inner && n < p.d_state;
      A[c][j] = exists ? p.A[channel * p.d_state + n] * kLog2e : 0.f;
      h[c][j] = exists && p.initial_state
                    ? p.initial_state[(batch * p.d_inner + channel) * p.d_state + n]
                    : 0.f;
    }
  }

  constexpr int kDepth = S::kAhead ? 2 : 1;  // groups from being read to being walked
  Loaded<S> loaded;
  Ready<S> ready;
  wait(kFilled, threads);
  load(tiles[0], 0, slot, state, loaded);
  if constexpr (S::kAhead) {
    make_ready(0, loaded, A, ready);
    load(tiles[0], 1, slot, state, loaded);
  }
  int stage = 0;
  for (int tile_index = 0; tile_index < tile_count; ++tile_index) {
    const int next_stage = stage + 1 < kStages ? stage + 1 : 0;
    auto& tile = tiles[stage];
    if (tile_index >= kStages) wait(kStored + stage, threads);
#pragma unroll
    for (int g = 0; g < S::kGroups; ++g) {
      Ready<S> next;
      make_ready(g + kDepth - 1, loaded, A, next);
      if (g + kDepth < S::kGroups) {
        load(tile, g + kDepth, slot, state, loaded);
      } else {
        if (g + kDepth == S::kGroups && tile_index + 1 < tile_count)
          wait(kFilled + next_stage, threads);
        load(tiles[next_stage], g + kDepth - S::kGroups, slot, state, loaded);
      }
      walk_group<T, S>(S::kAhead ? ready : next, g, warp, lane, h, tile);
      if constexpr (S::kAhead) ready = next;
    }
    arrive(kSummed + stage, threads);
    // Nobody waits for the last tiles to be read.
    if (tile_index + kStages < tile_count) arrive(kFree + stage, threads);
    stage = next_stage;
  }
#pragma unroll
  for (int c = 0; c < S::kChannels; ++c) {
    const int64_t channel = first + slot + c;
#pragma unroll
    for (int j = 0; j < S::kStates; ++j) {
      const int n = state + j;
      if (channel >= p.d_inner || n >= p.d_state) continue;
      p.last_state[(batch * p.d_inner + channel) * p.d_state + n] = h[c][j];
    }
  }
}

}  // namespace pipe
}  // namespace mamba
