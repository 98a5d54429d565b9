// Scan over a few steps: the state is read once, written once, and that is nearly all of the time.
//
// kLanes neighbouring lanes share a channel, each with kQuads times 4 states, 16 bytes an access
// (tuning.cuh has both numbers).
#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "common/cuda/lanes.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "selective_scan/cuda/scan.cuh"

namespace mamba {
namespace {

static_assert(StepOf256States::kAllStates == kMaxTileStates);

constexpr int kThreads = kScanStepThreads;
constexpr int64_t kMaxRows = 65535;  // of a grid
constexpr int kLineLanes = 8;        // lanes whose states are one line of the L2 cache

// How a thread reads: number by number; four at a time; or four at a time with length 1 and every
// lane, thread and sequence there. Instructions count here as bytes do: the last has the fewest.
enum StepForm { kByNumber, kByFours, kPlain };

// 4 numbers from `from`, of which count exist.
template <StepForm kForm, typename T>
__device__ __forceinline__ void load_four(const T* from, int count, float (&to)[4]) {
  if constexpr (kForm == kByNumber) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = i < count ? to_float(from[i]) : 0.f;
  } else {
    const bool exist = kForm == kPlain || count > 0;
    if (!exist) from += count - 4;  // the last four, which are not used
    const auto four = *reinterpret_cast<const Pack<T, 4>*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = exist ? to_float(four.values[i]) : 0.f;
  }
}

// A state is read and written once: it is not to push anything else out of the caches.
__device__ __forceinline__ void load_state(const float* from, float (&to)[4]) {
  const float4 four = __ldcs(reinterpret_cast<const float4*>(from));
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// A thread takes kSequences sequences of a channel: more loads under way, and A is read once. Of a
// number that they do not divide the last is done twice.
template <typename T, typename S, int kSequences, StepForm kForm>
__global__ void __launch_bounds__(kThreads)
    scan_step_kernel(const __grid_constant__ mamba_selective_scan_params p) {
  constexpr int kLanes = S::kLanes, kQuads = S::kQuads;
  constexpr bool kIsPlain = kForm == kPlain;
  let_next_kernel_start();
  const int index = static_cast<int>((blockIdx.x * kThreads + threadIdx.x) / kLanes);
  const int d_inner = static_cast<int>(p.d_inner);
  const int states = kIsPlain ? S::kAllStates : static_cast<int>(p.d_state);
  const int lane = threadIdx.x % kLanes;
  const bool exists = kIsPlain || index < d_inner;
  // Lanes past the end stay for the shuffles and work on the last channel.
  const int channel = exists ? index : d_inner - 1;
  const int groups = static_cast<int>(p.n_groups);
  const int group = groups == 1 ? 0 : channel / (d_inner / groups);
  // After the sums over lanes: the sequence of this lane, and whether it is the one that writes it.
  const int own = lane * kSequences / kLanes;
  const bool writes = exists && lane % (kLanes / kSequences) == 0;
  const float* A_row = p.A + int64_t{channel} * states;
  const int64_t sequence_states = int64_t{d_inner} * states, of_channel = int64_t{channel} * states;

  int first = static_cast<int>(blockIdx.y) * kSequences;
  const int batches = static_cast<int>(p.batch);
  const auto sequence = [&](int i) { return kIsPlain ? first + i : min(first + i, batches - 1); };
  // While the kernel ahead still runs, as that of a layer does, the states are on their way.
  if (kIsPlain && threadIdx.x % kLineLanes == 0) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int n = (q * kLanes + lane) * 4;
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        if (p.initial_state) {
          prefetch(p.initial_state + sequence(i) * sequence_states + of_channel + n);
        }
      }
      prefetch(A_row + n);
    }
  }
  wait_for_earlier_kernels();

  for (; first < batches; first += static_cast<int>(gridDim.y) * kSequences) {
    float h[kSequences][kQuads][4] = {}, A[kQuads][4];
#pragma unroll
    for (int i = 0; i < kSequences; ++i) {
      const float* state = p.initial_state + sequence(i) * sequence_states + of_channel;
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const int n = (q * kLanes + lane) * 4;
        if (!p.initial_state) continue;
        if constexpr (kIsPlain) {
          load_state(state + n, h[i][q]);
        } else {
          load_four<kForm>(state + n, states - n, h[i][q]);
        }
      }
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int n = (q * kLanes + lane) * 4;
      load_four<kForm>(A_row + n, states - n, A[q]);
    }
    const float bias = p.delta_bias[channel], D = p.D[channel];

    const int length = kIsPlain ? 1 : static_cast<int>(p.length);
    for (int s = 0; s < length; ++s) {
      const int64_t step = kIsPlain ? 0 : walked(p, s);
      float u[kSequences], dt[kSequences], own_z = 0.f, own_u = 0.f;
      float B[kSequences][kQuads][4], C[kSequences][kQuads][4];
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        const int b = sequence(i);
        u[i] = to_float(row<T>(p.u, b, step)[channel]);
        dt[i] = to_float(row<T>(p.delta, b, step)[channel]) + bias;
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          const int n = (q * kLanes + lane) * 4, at = group * states + n;
          load_four<kForm>(row<T>(p.B, b, step) + at, states - n, B[i][q]);
          load_four<kForm>(row<T>(p.C, b, step) + at, states - n, C[i][q]);
        }
      }
      if (writes && p.z.data) own_z = to_float(row<T>(p.z, sequence(own), step)[channel]);
      float y[kSequences];
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        if (i == own) own_u = u[i];
        if (p.delta_softplus) dt[i] = softplus<T>(dt[i]);
        const float du = dt[i] * u[i], log_decay = dt[i] * kLog2e;
        y[i] = 0.f;
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float& state = h[i][q][j];
            state = Decay(log_decay * A[q][j]).of(state, du * B[i][q][j]);
            y[i] += C[i][q][j] * state;
          }
        }
      }
      float sum = sum_over_lanes<kLanes, kSequences>(y, lane);
      if (writes) {
        sum += D * own_u;
        if (p.z.data) sum *= silu<T>(own_z);
        const int64_t at = sequence(own) * p.length + step;
        static_cast<T*>(p.y)[at * d_inner + channel] = from_float<T>(sum);
      }
    }
    if (!exists) continue;
#pragma unroll
    for (int i = 0; i < kSequences; ++i) {
      float* last_state = p.last_state + sequence(i) * sequence_states + of_channel;
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const int n = (q * kLanes + lane) * 4;
        float* last = last_state + n;
        const float (&four)[4] = h[i][q];
        if constexpr (kForm != kByNumber) {
          if (kIsPlain || n < states) {
            __stcs(reinterpret_cast<float4*>(last),
                   make_float4(four[0], four[1], four[2], four[3]));
          }
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (n + j < states) last[j] = four[j];
          }
        }
      }
    }
    if (kIsPlain) break;
  }
}

template <typename T, typename S, int kSequences, StepForm kForm>
cudaError_t launch(const mamba_selective_scan_params& p, cudaStream_t stream) {
  constexpr int kChannels = kThreads / S::kLanes;  // of a block
  const int64_t rows = (p.batch + kSequences - 1) / kSequences;
  const dim3 blocks(static_cast<unsigned>((p.d_inner + kChannels - 1) / kChannels),
                    static_cast<unsigned>(std::min(rows, kMaxRows)));
  return launch_overlapping(scan_step_kernel<T, S, kSequences, kForm>, blocks, dim3(kThreads), 0,
                            stream, current_gpu().major >= 9, p);
}

template <typename T, typename S>
cudaError_t launch(const mamba_selective_scan_params& p, cudaStream_t stream) {
  if (p.d_inner * p.d_state > INT32_MAX || p.batch > INT32_MAX / 2) {
    return launch_scan_any(p, stream);
  }
  constexpr int kSome = std::min(kSomeStepSequences, S::kLanes);
  constexpr int kMany = std::min(kManyStepSequences, S::kLanes);
  const bool is_wide =
      p.d_state % 4 == 0 && is_aligned<16>(p.A, 0, 4) && is_aligned<16>(p.initial_state, 0, 4) &&
      is_aligned<16>(p.last_state, 0, 4) && rows_aligned<4 * sizeof(T)>(p.B, sizeof(T)) &&
      rows_aligned<4 * sizeof(T)>(p.C, sizeof(T));
  const bool is_plain = is_wide && p.length == 1 && p.d_state == S::kAllStates &&
                        p.d_inner % (kThreads / S::kLanes) == 0 && p.batch <= kMaxRows;
  if (is_plain && p.batch % kMany == 0 && p.batch * p.d_inner * S::kLanes >= kManyScanStepThreads) {
    return launch<T, S, kMany, kPlain>(p, stream);
  }
  if (is_plain && p.batch % kSome == 0) return launch<T, S, kSome, kPlain>(p, stream);
  if (p.batch == 1) {
    return is_plain  ? launch<T, S, 1, kPlain>(p, stream)
           : is_wide ? launch<T, S, 1, kByFours>(p, stream)
                     : launch<T, S, 1, kByNumber>(p, stream);
  }
  return is_wide ? launch<T, S, kSome, kByFours>(p, stream)
                 : launch<T, S, kSome, kByNumber>(p, stream);
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
