// Scan over a few steps: the state is read once, written once, and that is nearly all of the time.
//
// kLanes neighbouring lanes share a channel, each with kQuads times 4 states, 16 bytes an access
// (tuning.cuh has both numbers).
#include <algorithm>

#include "common/cuda/tuning.cuh"
#include "selective_scan/cuda/scan.cuh"

namespace mamba {
namespace {

static_assert(StepOf256States::kAllStates == kMaxTileStates);

constexpr int kThreads = 128;
constexpr unsigned kMaxRows = 65535;  // of a grid
constexpr int kMaxSequences = 2;      // of a thread

// 4 numbers from `from`, of which count exist.
template <bool kAligned, typename T>
__device__ __forceinline__ void load_four(const T* from, int count, float (&to)[4]) {
  if constexpr (kAligned) {
    if (count <= 0) from += count - 4;  // the last four, which are not used
    const auto four = *reinterpret_cast<const Pack<T, 4>*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = count > 0 ? to_float(four.values[i]) : 0.f;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = i < count ? to_float(from[i]) : 0.f;
  }
}

// kAligned: states and inputs can be read four at a time. A thread takes kSequences sequences of a
// channel: twice the loads under way, and A is read once. Of an odd number the last is done twice.
template <typename T, typename S, int kSequences, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    scan_step_kernel(const __grid_constant__ mamba_selective_scan_params p) {
  constexpr int kLanes = S::kLanes, kQuads = S::kQuads;
  const int index = static_cast<int>((blockIdx.x * kThreads + threadIdx.x) / kLanes);
  const int d_inner = static_cast<int>(p.d_inner), states = static_cast<int>(p.d_state);
  const int lane = threadIdx.x % kLanes;
  const bool exists = index < d_inner;
  // Lanes past the end stay for the shuffles and work on the last channel.
  const int channel = exists ? index : d_inner - 1;
  const int group = channel / (d_inner / static_cast<int>(p.n_groups));

  for (int64_t first = int64_t{blockIdx.y} * kSequences; first < p.batch;
       first += int64_t{gridDim.y} * kSequences) {
    int64_t batch[kSequences], place[kSequences];
    float h[kSequences][kQuads][4] = {}, A[kQuads][4];
#pragma unroll
    for (int i = 0; i < kSequences; ++i) {
      batch[i] = first + i < p.batch ? first + i : p.batch - 1;
      place[i] = (batch[i] * d_inner + channel) * states;
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const int n = (q * kLanes + lane) * 4;
        if (p.initial_state) {
          load_four<kAligned>(p.initial_state + place[i] + n, states - n, h[i][q]);
        }
      }
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int n = (q * kLanes + lane) * 4;
      load_four<kAligned>(p.A + int64_t{channel} * states + n, states - n, A[q]);
    }
    const float bias = p.delta_bias[channel], D = p.D[channel];

    for (int64_t s = 0; s < p.length; ++s) {
      const int64_t step = walked(p, s);
      float u[kSequences], dt[kSequences], z[kSequences];
      float B[kSequences][kQuads][4], C[kSequences][kQuads][4];
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        u[i] = to_float(row<T>(p.u, batch[i], step)[channel]);
        dt[i] = to_float(row<T>(p.delta, batch[i], step)[channel]) + bias;
        z[i] = p.z.data ? to_float(row<T>(p.z, batch[i], step)[channel]) : 0.f;
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          const int n = (q * kLanes + lane) * 4, at = group * states + n;
          load_four<kAligned>(row<T>(p.B, batch[i], step) + at, states - n, B[i][q]);
          load_four<kAligned>(row<T>(p.C, batch[i], step) + at, states - n, C[i][q]);
        }
      }
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        if (p.delta_softplus) dt[i] = softplus<T>(dt[i]);
        const float du = dt[i] * u[i];
        float y = 0.f;
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float& state = h[i][q][j];
            state = exp2_fast(dt[i] * kLog2e * A[q][j]) * state + du * B[i][q][j];
            y += C[i][q][j] * state;
          }
        }
#pragma unroll
        for (int apart = kLanes / 2; apart > 0; apart /= 2) y += __shfl_xor_sync(~0u, y, apart);
        if (exists && lane == 0) {
          y += D * u[i];
          if (p.z.data) y *= silu<T>(z[i]);
          static_cast<T*>(p.y)[(batch[i] * p.length + step) * d_inner + channel] = from_float<T>(y);
        }
      }
    }
    if (!exists) continue;
#pragma unroll
    for (int i = 0; i < kSequences; ++i) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const int n = (q * kLanes + lane) * 4;
        float* last = p.last_state + place[i] + n;
        const float (&four)[4] = h[i][q];
        if constexpr (kAligned) {
          if (n < states) {
            *reinterpret_cast<float4*>(last) = make_float4(four[0], four[1], four[2], four[3]);
          }
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (n + j < states) last[j] = four[j];
          }
        }
      }
    }
  }
}

template <typename T, typename S>
cudaError_t launch(const mamba_selective_scan_params& p, cudaStream_t stream) {
  constexpr int kChannels = kThreads / S::kLanes;  // of a block
  if (p.d_inner * p.d_state > INT32_MAX) return launch_scan_any(p, stream);
  const int64_t sequences = p.batch > 1 ? kMaxSequences : 1;  // of a thread
  const dim3 blocks(
      static_cast<unsigned>((p.d_inner + kChannels - 1) / kChannels),
      static_cast<unsigned>(std::min<int64_t>((p.batch + sequences - 1) / sequences, kMaxRows)));
  const bool is_wide =
      p.d_state % 4 == 0 && is_aligned<16>(p.A, 0, 4) && is_aligned<16>(p.initial_state, 0, 4) &&
      is_aligned<16>(p.last_state, 0, 4) && rows_aligned<4 * sizeof(T)>(p.B, sizeof(T)) &&
      rows_aligned<4 * sizeof(T)>(p.C, sizeof(T));
  const auto kernel = !is_wide ? (sequences == 1 ? scan_step_kernel<T, S, 1, false>
                                                 : scan_step_kernel<T, S, kMaxSequences, false>)
                               : (sequences == 1 ? scan_step_kernel<T, S, 1, true>
                                                 : scan_step_kernel<T, S, kMaxSequences, true>);
  kernel<<<blocks, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_scan_step(const mamba_selective_scan_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (p.d_state <= StepOf4States::kAllStates) return launch<T, StepOf4States>(p, stream);
    if (p.d_state <= StepOf16States::kAllStates) return launch<T, StepOf16States>(p, stream);
    if (p.d_state <= StepOf64States::kAllStates) return launch<T, StepOf64States>(p, stream);
    if (p.d_state <= StepOf128States::kAllStates) return launch<T, StepOf128States>(p, stream);
    return launch<T, StepOf256States>(p, stream);
  });
}

}  // namespace mamba
