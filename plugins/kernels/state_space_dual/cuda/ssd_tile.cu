// State space duality on CUDA cores: the recurrence itself, so that it is exact for any decay, for
// every shape with d_state up to 256.
//
// A block has some channels of a head, and walks tiles of a few steps in shared memory. kLanes
// neighbouring lanes share kRows channels, each with kStatesAThread of their states in registers.
#include "common/cuda/tuning.cuh"
#include "common/sizes.h"
#include "state_space_dual/cuda/ssd.cuh"

namespace mamba {
namespace {

static_assert(SsdTileOf256States::kAllStates == kMostSsdTileStates);

// What a block works on.
struct Place {
  int part;
  int64_t batch, head, group, channel;  // the first channel of the block
  int64_t begin, end;                   // steps of the walk
};

template <typename S>
__device__ __forceinline__ Place place_of(const mamba_state_space_dual_params& p,
                                          const SsdParts& parts) {
  const int64_t tiles = (p.head_dim + S::kBlockRows - 1) / S::kBlockRows;
  int64_t index = blockIdx.x;
  Place place;
  place.channel = index % tiles * S::kBlockRows;
  index /= tiles;
  place.head = index % p.heads;
  index /= p.heads;
  place.batch = index % p.batch;
  place.part = static_cast<int>(index / p.batch);
  place.group = place.head / (p.heads / p.n_groups);
  place.begin = place.part * parts.part_length;
  place.end =
      place.begin + parts.part_length < p.length ? place.begin + parts.part_length : p.length;
  return place;
}

template <typename T, typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    ssd_tile_kernel(const __grid_constant__ mamba_state_space_dual_params p,
                    const __grid_constant__ SsdParts parts) {
  constexpr int kLanes = S::kLanes, kRows = S::kRows, kSteps = S::kSteps;
  constexpr int kQuads = S::kStatesAThread / 4, kAllStates = S::kAllStates;
  constexpr int kBlockRows = S::kBlockRows;
  __shared__ __align__(16) float B_tile[kSteps][kAllStates], C_tile[kSteps][kAllStates];
  __shared__ __align__(16) float x_tile[kSteps][kBlockRows];
  __shared__ float y_tile[kSteps][kBlockRows];
  __shared__ float dt_tile[kSteps], decay_tile[kSteps];

  const Place at = place_of<S>(p, parts);
  const bool has_outputs = parts.pass != kSsdStates;
  const int states = static_cast<int>(p.d_state);
  const int rows = static_cast<int>(p.head_dim - at.channel < kBlockRows ? p.head_dim - at.channel
                                                                         : int64_t{kBlockRows});
  const int lane = threadIdx.x % kLanes, first_row = threadIdx.x / kLanes * kRows;
  const int64_t first_state = ((at.batch * p.heads + at.head) * p.head_dim + at.channel) * states;
  const int64_t all_states = p.batch * p.heads * p.head_dim * states;
  const float A = p.A[at.head], bias = p.dt_bias[at.head];

  float h[kRows][kQuads][4];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = (q * kLanes + lane) * 4 + i;
        const int64_t index = first_state + int64_t{first_row + r} * states + n;
        const bool exists = first_row + r < rows && n < states;
        float value = 0.f;
        if (exists && parts.pass == kSsdWhole) value = load_state<T>(p, index);
        if (exists && parts.pass == kSsdOutputs) {
          value = parts.states[at.part * all_states + index];
        }
        h[r][q][i] = value;
      }
    }
  }

  float whole_decay = 0.f;
  for (int64_t begin = at.begin; begin < at.end; begin += kSteps) {
    const int steps = static_cast<int>(at.end - begin < kSteps ? at.end - begin : int64_t{kSteps});
    for (int i = threadIdx.x; i < steps; i += S::kThreads) {
      const int64_t step = walked(p, begin + i);
      const SsdStep now = ssd_step_of<T>(p, to_float(row<T>(p.dt, at.batch, step)[at.head]),
                                         log_decay_at(p, at.batch, step, at.head), A, bias);
      dt_tile[i] = now.dt;
      decay_tile[i] = now.decay;
    }
    for (int i = threadIdx.x; i < steps * kAllStates; i += S::kThreads) {
      const int s = i / kAllStates, n = i % kAllStates;
      const int64_t step = walked(p, begin + s), from = at.group * states + n;
      B_tile[s][n] = n < states ? to_float(row<T>(p.B, at.batch, step)[from]) : 0.f;
      C_tile[s][n] = n < states && has_outputs ? to_float(row<T>(p.C, at.batch, step)[from]) : 0.f;
    }
    for (int i = threadIdx.x; i < steps * kBlockRows; i += S::kThreads) {
      const int s = i / kBlockRows, r = i % kBlockRows;
      const T* x = row<T>(p.x, at.batch, walked(p, begin + s)) + at.head * p.head_dim + at.channel;
      x_tile[s][r] = r < rows ? to_float(x[r]) : 0.f;
    }
    __syncthreads();

    for (int s = 0; s < steps; ++s) {
      const float dt = dt_tile[s], decay = exp2_fast(decay_tile[s] + decay_shift(s));
      whole_decay += decay_tile[s];
      float dt_x[kRows], y[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        dt_x[r] = dt * x_tile[s][first_row + r];
        y[r] = 0.f;
      }
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const float4 B = reinterpret_cast<const float4*>(B_tile[s])[q * kLanes + lane];
        const float4 C = reinterpret_cast<const float4*>(C_tile[s])[q * kLanes + lane];
        const float Bs[4] = {B.x, B.y, B.z, B.w}, Cs[4] = {C.x, C.y, C.z, C.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            h[r][q][i] = decay * h[r][q][i] + dt_x[r] * Bs[i];
            y[r] += Cs[i] * h[r][q][i];
          }
        }
      }
      if (has_outputs) {
        const float sum = sum_over_lanes<kLanes, kRows>(y, lane);
        if (lane % (kLanes / kRows) == 0) {
          y_tile[s][first_row + lane * kRows / kLanes] = sum;
        }
      }
    }
    __syncthreads();

    // The next tile's loads leave y_tile alone, and x_tile is read by the thread that loads it.
    for (int i = threadIdx.x; has_outputs && i < steps * kBlockRows; i += S::kThreads) {
      const int s = i / kBlockRows, r = i % kBlockRows;
      if (r >= rows) continue;
      const int64_t step = walked(p, begin + s), channel = at.channel + r;
      const int64_t in_row = at.head * p.head_dim + channel;
      float y = y_tile[s][r] + skip_at(p, at.head, channel) * x_tile[s][r];
      if (p.z.data) y *= silu<T>(to_float(row<T>(p.z, at.batch, step)[in_row]));
      static_cast<T*>(p.y)[(at.batch * p.length + step) * p.heads * p.head_dim + in_row] =
          from_float<T>(y);
    }
  }

  if (parts.pass == kSsdOutputs && at.part != parts.count - 1) return;
  if (parts.pass == kSsdStates && threadIdx.x == 0 && at.channel == 0) {
    parts.decays[(at.part * p.batch + at.batch) * p.heads + at.head] = whole_decay;
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = (q * kLanes + lane) * 4 + i;
        const int64_t index = first_state + int64_t{first_row + r} * states + n;
        if (first_row + r >= rows || n >= states) continue;
        if (parts.pass == kSsdStates) {
          parts.states[at.part * all_states + index] = h[r][q][i];
        } else {
          store_state<T>(p, index, h[r][q][i]);
        }
      }
    }
  }
}

template <typename T, typename S>
cudaError_t launch(const mamba_state_space_dual_params& p, const SsdParts& parts,
                   cudaStream_t stream) {
  const int64_t tiles = (p.head_dim + S::kBlockRows - 1) / S::kBlockRows;
  const int64_t count = parts.pass == kSsdStates ? parts.count - 1 : parts.count;
  const int64_t blocks = product(tiles, p.heads, p.batch, count);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  ssd_tile_kernel<T, S><<<static_cast<unsigned>(blocks), S::kThreads, 0, stream>>>(p, parts);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_ssd_tile(const mamba_state_space_dual_params& p, const SsdParts& parts,
                            cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (p.d_state <= SsdTileOf8States::kAllStates)
      return launch<T, SsdTileOf8States>(p, parts, stream);
    if (p.d_state <= SsdTileOf16States::kAllStates)
      return launch<T, SsdTileOf16States>(p, parts, stream);
    if (p.d_state <= SsdTileOf64States::kAllStates)
      return launch<T, SsdTileOf64States>(p, parts, stream);
    if (p.d_state <= SsdTileOf128States::kAllStates)
      return launch<T, SsdTileOf128States>(p, parts, stream);
    return launch<T, SsdTileOf256States>(p, parts, stream);
  });
}

}  // namespace mamba
