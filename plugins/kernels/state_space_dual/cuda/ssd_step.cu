// State space duality over a few steps: the state is read once, written once, and that is nearly
// all of the time.
//
// kLanes neighbouring lanes share a channel of a head; a lane has kVectors times 16 bytes of its
// state, and kRows channels, whose loads are under way together.
#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "common/sizes.h"
#include "state_space_dual/cuda/ssd.cuh"

namespace mamba {
namespace {

constexpr int kThreads = kSsdStepThreads;
constexpr int64_t kMostOfGrid = 65535;  // in y and z

template <typename R>
constexpr int kWidth = 16 / sizeof(R);  // states of a vector

// Read and written once: they are not to push anything else out of the caches.
template <typename R>
__device__ __forceinline__ Pack<R, kWidth<R>> load_streaming(const R* from) {
  union {
    uint4 bits;
    Pack<R, kWidth<R>> pack;
  } both = {__ldcs(reinterpret_cast<const uint4*>(from))};
  return both.pack;
}
template <typename R>
__device__ __forceinline__ void store_streaming(R* to, const Pack<R, kWidth<R>>& pack) {
  union {
    Pack<R, kWidth<R>> pack;
    uint4 bits;
  } both = {pack};
  __stcs(reinterpret_cast<uint4*>(to), both.bits);
}

constexpr int kLineLanes = 8;  // lanes whose vectors are one line of the L2 cache

// What a block needs of sizes, without 64-bit divisions.
struct StepSizes {
  int head_dim, states;
  int heads_a_group, channels_a_skip;
  int64_t state_of_head;  // numbers
};

// kIsPlain: of one step, all of whose loads are then under way together, and every lane and thread
// has channels and states of its own. Instructions count here as bytes do.
template <typename T, typename R, int kLanes, int kVectors, int kRows, bool kIsPlain>
__global__ void __launch_bounds__(kThreads)
    ssd_step_kernel(const __grid_constant__ mamba_state_space_dual_params p,
                    const __grid_constant__ StepSizes sizes) {
  constexpr int kV = kWidth<R>, kApart = kThreads / kLanes;  // rows of a thread lie kApart apart
  let_next_kernel_start();
  const int lane = threadIdx.x % kLanes;
  const int states = kIsPlain ? kLanes * kVectors * kV : sizes.states;
  const int first_row = blockIdx.x * (kApart * kRows) + threadIdx.x / kLanes;
  const int head = blockIdx.y, batch = blockIdx.z;
  // In the head's state; of a row's first vector of this lane.
  const int first = first_row * states + lane * kV;
  const int64_t of_head = (batch * p.heads + head) * sizes.state_of_head;
  const bool has_past = p.initial_state;  // else it is zeros
  const R* past = static_cast<const R*>(p.initial_state) + of_head + first;
  R* last = static_cast<R*>(p.last_state) + of_head + first;
  const auto has_row = [&](int r) { return kIsPlain || first_row + r * kApart < sizes.head_dim; };
  const auto has_state = [&](int v) { return kIsPlain || (v * kLanes + lane) * kV < states; };
  // After the sums over lanes: the row of this lane, and whether it is the one that writes it.
  const int own = lane * kRows / kLanes, own_row = first_row + own * kApart;
  const bool writes = lane % (kLanes / kRows) == 0 && (kIsPlain || own_row < sizes.head_dim);
  // While the kernel ahead still runs, as that of a layer does, a head's own numbers and the states
  // are on their way.
  if (threadIdx.x == 0) {
    prefetch(p.A + head);
    prefetch(p.dt_bias + head);
    prefetch(p.D + head * p.d_skip);
  }
  if (lane % kLineLanes == 0 && has_past) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (has_row(r) && has_state(v)) prefetch(past + r * kApart * states + v * kLanes * kV);
      }
    }
  }
  wait_for_earlier_kernels();

  Pack<R, kV> packed[kRows][kVectors];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      packed[r][v] = {};
      if (has_past && has_row(r) && has_state(v)) {
        packed[r][v] = load_streaming(past + r * kApart * states + v * kLanes * kV);
      }
    }
  }
  const int of_group = head / sizes.heads_a_group * states + lane * kV;
  const int of_channels = head * sizes.head_dim;
  const float A = p.A[head], bias = p.dt_bias[head];

  float h[kRows][kVectors][kV];
  const int length = kIsPlain ? 1 : static_cast<int>(p.length);
  for (int s = 0; s < length; ++s) {
    const int64_t step = kIsPlain ? 0 : walked(p, s);
    const T* B = row<T>(p.B, batch, step) + of_group;
    const T* C = row<T>(p.C, batch, step) + of_group;
    const T* x = row<T>(p.x, batch, step) + of_channels;
    Pack<T, kV> Bs[kVectors], Cs[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Bs[v] = Cs[v] = {};
      if (has_state(v)) {
        Bs[v] = *reinterpret_cast<const Pack<T, kV>*>(B + v * kLanes * kV);
        Cs[v] = *reinterpret_cast<const Pack<T, kV>*>(C + v * kLanes * kV);
      }
    }
    float dt_x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      dt_x[r] = has_row(r) ? to_float(x[first_row + r * kApart]) : 0.f;
    }
    const float raw_dt = to_float(row<T>(p.dt, batch, step)[head]);
    const float log_decay = log_decay_at(p, batch, step, head);
    float own_x = 0.f, z = 0.f, skip = 0.f;
    if (writes) {
      own_x = to_float(x[own_row]);
      if (p.z.data) z = to_float(row<T>(p.z, batch, step)[of_channels + own_row]);
      const int64_t skips = p.d_skip;
      skip = p.D[head * skips + (skips == 1 ? 0 : own_row / sizes.channels_a_skip)];
    }
    const SsdStep now = ssd_step_of<T>(p, raw_dt, log_decay, A, bias);
    const Decay decay(now.decay);
    float y[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      dt_x[r] *= now.dt;
      y[r] = 0.f;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
#pragma unroll
        for (int i = 0; i < kV; ++i) {
          float& state = h[r][v][i];
          if (s == 0) state = to_float(packed[r][v].values[i]);
          state = decay.of(state, dt_x[r] * to_float(Bs[v].values[i]));
          y[r] += state * to_float(Cs[v].values[i]);
        }
      }
    }
    float sum = sum_over_lanes<kLanes, kRows>(y, lane);
    if (writes) {
      sum += skip * own_x;
      if (p.z.data) sum *= silu<T>(z);
      const int64_t at = batch * p.length + step;
      static_cast<T*>(p.y)[at * (p.heads * p.head_dim) + of_channels + own_row] =
          from_float<T>(sum);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (!has_row(r) || !has_state(v)) continue;
      Pack<R, kV> next;
#pragma unroll
      for (int i = 0; i < kV; ++i) next.values[i] = from_float<R>(h[r][v][i]);
      store_streaming(last + r * kApart * states + v * kLanes * kV, next);
    }
  }
}

template <int kLanes, int kRows>
constexpr int64_t kBlockRows = kThreads / kLanes * kRows;

template <typename T, typename R, int kLanes, int kVectors, int kRows, bool kIsPlain>
cudaError_t launch(const mamba_state_space_dual_params& p, cudaStream_t stream) {
  constexpr int64_t kOfBlock = kBlockRows<kLanes, kRows>;
  const dim3 grid(static_cast<unsigned>((p.head_dim + kOfBlock - 1) / kOfBlock),
                  static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch));
  const StepSizes sizes = {static_cast<int>(p.head_dim), static_cast<int>(p.d_state),
                           static_cast<int>(p.heads / p.n_groups),
                           static_cast<int>(p.head_dim / p.d_skip), p.head_dim * p.d_state};
  return launch_overlapping(ssd_step_kernel<T, R, kLanes, kVectors, kRows, kIsPlain>, grid,
                            dim3(kThreads), 0, stream, current_gpu().major >= 9, p, sizes);
}

// A few heads spread over as many blocks as they can; many give each thread more channels.
template <typename T, typename R, int kLanes, int kVectors>
cudaError_t launch(const mamba_state_space_dual_params& p, cudaStream_t stream) {
  const bool is_plain = p.length == 1 && p.d_state == kLanes * kVectors * kWidth<R>;
  const int64_t bytes = p.batch * p.heads * p.head_dim * p.d_state * int64_t{sizeof(R)};
  if (is_plain && bytes >= kLargeSsdState && p.head_dim % kBlockRows<kLanes, kSsdStepRows> == 0) {
    return launch<T, R, kLanes, kVectors, kSsdStepRows, true>(p, stream);
  }
  if (is_plain && p.head_dim % kBlockRows<kLanes, 1> == 0) {
    return launch<T, R, kLanes, kVectors, 1, true>(p, stream);
  }
  return launch<T, R, kLanes, kVectors, 1, false>(p, stream);
}

template <typename T, typename R>
cudaError_t launch(const mamba_state_space_dual_params& p, cudaStream_t stream) {
  const int64_t vectors = p.d_state / kWidth<R>;
  if (vectors <= 8) return launch<T, R, 8, 1>(p, stream);
  if (vectors <= 16) return launch<T, R, 16, 1>(p, stream);
  if (vectors <= 32) return launch<T, R, 32, 1>(p, stream);
  if constexpr (sizeof(R) == 4) return launch<T, R, 32, 2>(p, stream);
  return cudaErrorNotSupported;
}

template <typename T, typename R>
bool fits(const mamba_state_space_dual_params& p) {
  constexpr int kBytes = kWidth<R> * sizeof(T);  // of B and C at a time
  return p.d_state % kWidth<R> == 0 && p.d_state <= kMostSsdTileStates &&
         is_aligned<16>(p.initial_state, 0, sizeof(R)) &&
         is_aligned<16>(p.last_state, 0, sizeof(R)) && rows_aligned<kBytes>(p.B, sizeof(T)) &&
         rows_aligned<kBytes>(p.C, sizeof(T));
}

}  // namespace

bool ssd_step_fits(const mamba_state_space_dual_params& p) {
  if (p.heads > kMostOfGrid || p.batch > kMostOfGrid) return false;
  constexpr int64_t kMost = INT32_MAX / 2;
  if (product(p.head_dim, p.heads) > kMost || product(p.n_groups, p.d_state) > kMost ||
      product(p.head_dim, p.d_state) > kMost) {
    return false;
  }
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return p.initial_state_dtype == MAMBA_FP32 ? fits<T, float>(p) : fits<T, T>(p);
  });
}

cudaError_t launch_ssd_step(const mamba_state_space_dual_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return p.initial_state_dtype == MAMBA_FP32 ? launch<T, float>(p, stream)
                                               : launch<T, T>(p, stream);
  });
}

}  // namespace mamba
