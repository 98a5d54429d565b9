// step_state for one token a sequence, with as little as can be between the end of the kernel ahead
// and its own end: dt_proj's weights wait in registers, and a channel's team adds up dt without a
// barrier. A block has some channels of one sequence.
#pragma once

#include <algorithm>

#include "common/cuda/cluster.cuh"
#include "layer/cuda/launch.cuh"
#include "mamba_layer/cuda/layer.cuh"
#include "mamba_layer/cuda/states.cuh"

namespace mamba {
namespace step {

constexpr int kTokenThreads = kStateTokenThreads, kTokenChannels = kTokenThreads / kTeam;
constexpr int kSharesAtOnce = 8;  // packs of shares that a thread asks for at once
constexpr int kRanksAtOnce = 40;  // dt_proj's weights of a thread that wait in registers

struct StateTokenShared {
  size_t projected, partial, bytes;

  // rows: of a block. At most kTokenThreads packs of four numbers are partial sums, or none.
  __host__ __device__ StateTokenShared(const LayerStep& s, int rows) {
    projected = 0;
    partial = sizeof(float) * padded(int64_t{rows} * s.projected);
    bytes = partial + sizeof(float) * kTokenThreads * kTeamStates;
  }
};

// Adds up shares of `width` numbers, of which Width are read at once, by the blocks of a cluster
// together: every block would read them all, which takes longer than the step where they are many.
template <int Width, int Cluster>
class ShareSums {
 public:
  __device__ ShareSums(int width, int block)
      : width_(width),
        own_((width / Width + Cluster - 1) / Cluster),
        first_(block * own_),
        groups_(max(1, kTokenThreads / own_)),
        group_(static_cast<int>(threadIdx.x) / own_),
        place_(static_cast<int>(threadIdx.x) - group_ * own_) {}

  // projected (width) = the sums, each share `apart` numbers after the last; partial as in
  // StateTokenShared. Every thread of the cluster must call it; projected may be read then.
  __device__ __forceinline__ void run(const float* shares, int splits, int apart, float* partial,
                                      float* projected) const {
    const int own = min(own_, width_ / Width - first_);
    float* sums = groups_ > 1 ? partial + group_ * own_ * Width : projected + first_ * Width;
#pragma unroll 1
    for (int pack = place_; pack < own && group_ < groups_; pack += kTokenThreads) {
      Numbers sum = {};
      const float* from = shares + (first_ + pack) * Width;
#pragma unroll 1
      for (int first = group_; first < splits; first += kSharesAtOnce * groups_) {
        Numbers values[kSharesAtOnce] = {};
#pragma unroll
        for (int k = 0; k < kSharesAtOnce; ++k) {
          const int split = first + k * groups_;
          if (split < splits) values[k] = *reinterpret_cast<const Numbers*>(from + split * apart);
        }
#pragma unroll
        for (int k = 0; k < kSharesAtOnce; ++k) {
#pragma unroll
          for (int i = 0; i < Width; ++i) sum.values[i] += values[k].values[i];
        }
      }
      *reinterpret_cast<Numbers*>(sums + pack * Width) = sum;
    }
    __syncthreads();
    if (groups_ > 1) {
      for (int n = threadIdx.x; n < own * Width; n += kTokenThreads) {
        float sum = partial[n];
#pragma unroll 4
        for (int other = 1; other < groups_; ++other) sum += partial[other * own_ * Width + n];
        projected[first_ * Width + n] = sum;
      }
      if (Cluster == 1) __syncthreads();
    }
    if constexpr (Cluster > 1) {
      cluster_barrier();
      for (int pack = threadIdx.x; pack < width_ / Width; pack += kTokenThreads) {
        float* to = projected + pack * Width;
        if (pack < first_ || pack >= first_ + own) {
          *reinterpret_cast<float4*>(to) = load_from_block(to, pack / own_);
        }
      }
      __syncthreads();
    }
  }

 private:
  using Numbers = Pack<float, Width>;
  static_assert(Cluster == 1 || Width == 4);
  // Packs of a block, and its first; threads that share a pack, and this thread's number among
  // them and pack.
  const int width_, own_, first_, groups_, group_, place_;
};

// Width: numbers of shares that are read at once, which divide `projected`. Rows: of a block, at
// most, which share dt_proj's weights.
template <typename T, int Width, int Cluster, int Rows>
__global__ void __launch_bounds__(kTokenThreads)
    step_state_token(const __grid_constant__ LayerStep s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const mamba_layer_params& p = s.layer;
  const StateTokenShared at(s, Rows);
  float* projected = reinterpret_cast<float*>(shared + at.projected);
  float* partial = reinterpret_cast<float*>(shared + at.partial);
  const int d_inner = p.d_inner, d_state = p.d_state, rank = p.dt_rank;
  const bool in_fours = s.reads_states_in_fours;
  const int member = threadIdx.x % kTeam;
  const int place = blockIdx.x * kTokenChannels + threadIdx.x / kTeam;
  const bool is_inside = place < d_inner;
  const int channel = is_inside ? place : d_inner - 1;  // a valid one to read; never written

  const T* weights = static_cast<const T*>(p.dt_proj_weight) + channel;
  T early[kRanksAtOnce];
#pragma unroll
  for (int k = 0; k < kRanksAtOnce; ++k) {
    const int n = k * kTeam + member;
    if (n < rank) early[k] = weights[static_cast<int64_t>(n) * d_inner];
  }
  const float* A_row = p.A + static_cast<int64_t>(channel) * d_state;
  const Pack<float, kTeamStates> A_first = four_of(A_row, member * kTeamStates, d_state, in_fours);
  const float bias = p.dt_bias[channel], skip = p.D[channel];
  const int first_row = blockIdx.y * Rows, rows = min(Rows, s.rows - first_row);
  const ShareSums<Width, Cluster> sums(rows * s.projected, blockIdx.x % Cluster);
  wait_and_let_next_start(s.in.codes.bits == 0);

  const auto state_of = [&](int r) {
    return (int64_t{first_row + r} * d_inner + channel) * d_state;
  };
  Pack<float, kTeamStates> first_states[Rows];
  float input[Rows], gate[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    if (r >= rows) break;
    const int at_row = (first_row + r) * s.in_stride + channel;
    first_states[r] =
        four_of(p.recurrent_state + state_of(r), member * kTeamStates, d_state, in_fours);
    input[r] = to_float(static_cast<const T*>(s.u)[at_row]);
    gate[r] = to_float(static_cast<const T*>(s.z)[at_row]);
  }
  // The rows' shares lie side by side.
  sums.run(s.parts + first_row * s.projected, s.splits, s.rows * s.projected, partial, projected);

  float sum[Rows] = {};
#pragma unroll
  for (int k = 0; k < kRanksAtOnce; ++k) {
    const int n = k * kTeam + member;
    if (k * kTeam >= rank) break;
    if (n >= rank) continue;
    const float weight = to_float(early[k]);
#pragma unroll
    for (int r = 0; r < Rows; ++r) sum[r] = fmaf(projected[r * s.projected + n], weight, sum[r]);
  }
#pragma unroll 1
  for (int n = kRanksAtOnce * kTeam + member; n < rank; n += kTeam) {
    const float weight = to_float(weights[static_cast<int64_t>(n) * d_inner]);
#pragma unroll
    for (int r = 0; r < Rows; ++r) sum[r] = fmaf(projected[r * s.projected + n], weight, sum[r]);
  }

#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    if (r >= rows) break;
    const float dt = softplus<T>(team_sum(sum[r]) + bias), dt_u = dt * input[r];
    float y = 0.f;
    const float* B = projected + r * s.projected + rank;
    const float* C = B + d_state;
#pragma unroll 1
    for (int n = member * kTeamStates; n < d_state; n += kTeam * kTeamStates) {
      const bool is_first = n == member * kTeamStates;
      const Pack<float, kTeamStates> A = is_first ? A_first : four_of(A_row, n, d_state, in_fours);
      Pack<float, kTeamStates> h =
          is_first ? first_states[r]
                   : four_of(p.recurrent_state + state_of(r), n, d_state, in_fours);
#pragma unroll
      for (int i = 0; i < kTeamStates; ++i) {
        if (n + i >= d_state) break;
        h.values[i] = exponential<T>(dt * A.values[i]) * h.values[i] + dt_u * B[n + i];
        y = fmaf(h.values[i], C[n + i], y);
      }
      if (is_inside) put_four(p.last_recurrent_state + state_of(r), n, d_state, in_fours, h);
    }
    y = team_sum(y);
    if (is_inside && member == 0) {
      static_cast<T*>(s.y)[(first_row + r) * s.y_stride + channel] =
          from_float<T>((y + skip * input[r]) * silu<T>(gate[r]));
    }
  }
  if constexpr (Cluster > 1) cluster_barrier();  // others may still be reading this block's sums
}

template <typename T, int Width, int Cluster, int Rows>
cudaError_t launch_state_token(const LayerStep& s, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {Cluster, 1, 1};
  const unsigned clusters = blocks_for(s.layer.d_inner, kTokenChannels * Cluster);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(clusters * Cluster, blocks_for(s.rows, Rows));
  config.blockDim = dim3(kTokenThreads);
  config.dynamicSmemBytes = StateTokenShared(s, Rows).bytes;
  config.stream = stream;
  config.attrs = attributes + (s.overlaps ? 0 : 1);
  config.numAttrs = (s.overlaps ? 1 : 0) + (Cluster > 1 ? 1 : 0);
  return cudaLaunchKernelEx(&config, step_state_token<T, Width, Cluster, Rows>, s);
}

// Rows of a block of the kernel for these sizes.
inline int state_token_rows(const LayerStep& s) {
  const bool is_large = s.rows > 1 && s.layer.d_inner >= kLargeStateChannels;
  return is_large && s.projected % kTeamStates == 0 ? kMaxStepRows : 1;
}

template <typename T>
cudaError_t launch_state_token(const LayerStep& s, cudaStream_t stream) {
  if (s.projected % kTeamStates != 0) return launch_state_token<T, 1, 1, 1>(s, stream);
  const int rows = std::min(state_token_rows(s), s.rows);
  const int64_t bytes = sizeof(float) * s.splits * rows * s.projected;
  const bool has_cluster = s.overlaps && bytes >= kLargeShares;
  if (rows > 1) {
    if (has_cluster) {
      return launch_state_token<T, kTeamStates, kStateCluster, kMaxStepRows>(s, stream);
    }
    return launch_state_token<T, kTeamStates, 1, kMaxStepRows>(s, stream);
  }
  if (has_cluster) return launch_state_token<T, kTeamStates, kStateCluster, 1>(s, stream);
  return launch_state_token<T, kTeamStates, 1, 1>(s, stream);
}

}  // namespace step
}  // namespace mamba
