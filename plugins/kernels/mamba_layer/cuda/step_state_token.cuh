// step_state for one token a sequence, with as little as can be between the end of the kernel ahead
// and its own end: dt_proj's weights wait in registers, and a channel's team adds up dt without a
// barrier. A block has some channels of one sequence.
#pragma once

#include "common/cuda/cluster.cuh"
#include "layer/cuda/launch.cuh"
#include "mamba_layer/cuda/layer.cuh"
#include "mamba_layer/cuda/states.cuh"

namespace mamba {
namespace step {

constexpr int kTokenThreads = kStateTokenThreads, kTokenChannels = kTokenThreads / kTeam;
constexpr int kSharesAtOnce = 8;  // packs of shares that a thread asks for at once
constexpr int kRanksAtOnce = 40;  // dt_proj's weights of a thread that wait in registers

constexpr int kUsualStates = 16;  // d_state, as models have it

// Whether the layer is as models have it, for which the kernel is compiled apart.
inline bool is_usual(const LayerStep& s) {
  return s.layer.d_state == kUsualStates && s.reads_states_in_fours &&
         s.layer.dt_rank <= kRanksAtOnce * kTeam;
}

struct StateTokenShared {
  size_t projected, partial, bytes;

  // At most kTokenThreads packs of four numbers are partial sums, or none.
  __host__ __device__ explicit StateTokenShared(const LayerStep& s) {
    projected = 0;
    partial = sizeof(float) * padded(s.projected);
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
#pragma unroll 1
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
#pragma unroll 1
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

// Width: numbers of shares that are read at once, which divide `projected`. IsEarly: the first
// kernel has codes. It lets this one start after a wait of its own, when all that is ahead of it
// has ended, the step that wrote the states, too: they are read before this one's wait, past the
// first-level cache, which may hold what their lines were when an earlier kernel read them.
template <typename T, int Width, int Cluster, bool IsUsual, bool IsEarly>
__global__ void __launch_bounds__(kTokenThreads)
    step_state_token(const __grid_constant__ LayerStep s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const mamba_layer_params& p = s.layer;
  const StateTokenShared at(s);
  float* projected = reinterpret_cast<float*>(shared + at.projected);
  float* partial = reinterpret_cast<float*>(shared + at.partial);
  const int d_inner = p.d_inner, d_state = IsUsual ? kUsualStates : p.d_state, rank = p.dt_rank;
  const bool in_fours = IsUsual || s.reads_states_in_fours;
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
  const ShareSums<Width, Cluster> sums(s.projected, blockIdx.x % Cluster);
  const int row = blockIdx.y;
  const int64_t offset = (int64_t{row} * d_inner + channel) * d_state;
  Pack<float, kTeamStates> first_states;
  if constexpr (IsEarly) {
    static_assert(IsUsual, "it has a vector of states for each member of a team");
    const float4 states =
        __ldcg(reinterpret_cast<const float4*>(p.recurrent_state + offset + member * kTeamStates));
    first_states = {states.x, states.y, states.z, states.w};
  }
  wait_and_let_next_start(s.in.codes.bits == 0);

  if constexpr (!IsEarly) {
    first_states = four_of(p.recurrent_state + offset, member * kTeamStates, d_state, in_fours);
  }
  const float input = to_float(static_cast<const T*>(s.u)[row * s.in_stride + channel]);
  const float gate = to_float(static_cast<const T*>(s.z)[row * s.in_stride + channel]);
  const float* shares = s.parts + row * s.projected;
  const int apart = s.rows * s.projected;
  sums.run(shares, s.splits, apart, partial, projected);

  float sum = 0.f;
#pragma unroll
  for (int k = 0; k < kRanksAtOnce; ++k) {
    const int n = k * kTeam + member;
    if (k * kTeam >= rank) break;
    if (n < rank) sum = fmaf(projected[n], to_float(early[k]), sum);
  }
#pragma unroll 1
  for (int n = kRanksAtOnce * kTeam + member; !IsUsual && n < rank; n += kTeam) {
    sum = fmaf(projected[n], to_float(weights[static_cast<int64_t>(n) * d_inner]), sum);
  }
  const float dt = softplus<T>(team_sum(sum) + bias), dt_u = dt * input;

  float y = 0.f;
  const float* B = projected + rank;
  const float* C = B + d_state;
#pragma unroll 1
  for (int n = member * kTeamStates; n < d_state; n += kTeam * kTeamStates) {
    const bool is_first = n == member * kTeamStates;
    const Pack<float, kTeamStates> A = is_first ? A_first : four_of(A_row, n, d_state, in_fours);
    Pack<float, kTeamStates> h =
        is_first ? first_states : four_of(p.recurrent_state + offset, n, d_state, in_fours);
#pragma unroll
    for (int i = 0; i < kTeamStates; ++i) {
      if (n + i >= d_state) break;
      h.values[i] = Decay(dt * kLog2e * A.values[i]).of(h.values[i], dt_u * B[n + i]);
      y = fmaf(h.values[i], C[n + i], y);
    }
    if (is_inside) put_four(p.last_recurrent_state + offset, n, d_state, in_fours, h);
  }
  y = team_sum(y);
  if constexpr (Cluster > 1) cluster_barrier();  // others may still be reading this block's sums
  if (is_inside && member == 0) {
    static_cast<T*>(s.y)[row * s.y_stride + channel] =
        from_float<T>((y + skip * input) * silu<T>(gate));
  }
}

template <typename T, int Width, int Cluster, bool IsUsual, bool IsEarly = false>
cudaError_t launch_state_token(const LayerStep& s, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {Cluster, 1, 1};
  const unsigned clusters = blocks_for(s.layer.d_inner, kTokenChannels * Cluster);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(clusters * Cluster, s.rows);
  config.blockDim = dim3(kTokenThreads);
  config.dynamicSmemBytes = StateTokenShared(s).bytes;
  config.stream = stream;
  config.attrs = attributes + (s.overlaps ? 0 : 1);
  config.numAttrs = (s.overlaps ? 1 : 0) + (Cluster > 1 ? 1 : 0);
  return cudaLaunchKernelEx(&config, step_state_token<T, Width, Cluster, IsUsual, IsEarly>, s);
}

template <typename T>
cudaError_t launch_state_token(const LayerStep& s, cudaStream_t stream) {
  if (s.projected % kTeamStates != 0) return launch_state_token<T, 1, 1, false>(s, stream);
  const int64_t bytes = sizeof(float) * s.splits * s.projected;
  const bool is_packed = s.in.codes.bits != 0;
  const bool has_large = bytes >= (is_packed ? kLargePackedShares : kLargeShares);
  const auto of_cluster = [&](auto cluster) {
    constexpr int kCluster = decltype(cluster)::value;
    if (!is_usual(s)) return launch_state_token<T, kTeamStates, kCluster, false>(s, stream);
    return is_packed ? launch_state_token<T, kTeamStates, kCluster, true, true>(s, stream)
                     : launch_state_token<T, kTeamStates, kCluster, true>(s, stream);
  };
  if (s.overlaps && has_large) return of_cluster(std::integral_constant<int, kStateCluster>());
  return of_cluster(std::integral_constant<int, 1>());
}

}  // namespace step
}  // namespace mamba
