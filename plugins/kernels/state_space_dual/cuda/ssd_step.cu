// State space duality over a few steps: the state is read once, written once, and that is nearly
// all of the time.
//
// kLanes neighbouring lanes share a channel of a head; a lane has kVectors times 16 bytes of its
// state, and kRows channels, whose loads are under way together.
#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "state_space_dual/cuda/ssd.cuh"

namespace mamba {
namespace {

constexpr int kThreads = 256;
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

// kIsOne: of one step, all of whose loads are then under way together.
template <typename T, typename R, int kLanes, int kVectors, int kRows, bool kIsOne>
__global__ void __launch_bounds__(kThreads)
    ssd_step_kernel(const __grid_constant__ mamba_state_space_dual_params p) {
  constexpr int kV = kWidth<R>, kApart = kThreads / kLanes;  // rows of a thread lie kApart apart
  let_next_kernel_start();
  const int lane = threadIdx.x % kLanes, states = static_cast<int>(p.d_state);
  const int first_row = blockIdx.x * (kApart * kRows) + threadIdx.x / kLanes;
  const int head = blockIdx.y, head_dim = static_cast<int>(p.head_dim);
  const int group = head / static_cast<int>(p.heads / p.n_groups);
  const int64_t batch = blockIdx.z, first = (batch * p.heads + head) * p.head_dim;
  wait_for_earlier_kernels();

  Pack<R, kV> packed[kRows][kVectors];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int row = first_row + r * kApart, n = (v * kLanes + lane) * kV;
      packed[r][v] = {};
      if (row < head_dim && n < states) {
        packed[r][v] =
            load_streaming(static_cast<const R*>(p.initial_state) + (first + row) * states + n);
      }
    }
  }
  const float A = p.A[head], bias = p.dt_bias[head];
  float skip[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = first_row + r * kApart;
    skip[r] = row < head_dim ? skip_at(p, head, row) : 0.f;
  }

  float h[kRows][kVectors][kV];
  const int64_t length = kIsOne ? 1 : p.length;
  for (int64_t s = 0; s < length; ++s) {
    const int64_t step = walked(p, s);
    const int64_t in_row = int64_t{head} * head_dim + first_row;
    const T* B = row<T>(p.B, batch, step) + group * states;
    const T* C = row<T>(p.C, batch, step) + group * states;
    Pack<T, kV> Bs[kVectors], Cs[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int n = (v * kLanes + lane) * kV;
      Bs[v] = Cs[v] = {};
      if (n < states) {
        Bs[v] = *reinterpret_cast<const Pack<T, kV>*>(B + n);
        Cs[v] = *reinterpret_cast<const Pack<T, kV>*>(C + n);
      }
    }
    float x[kRows], z[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool exists = first_row + r * kApart < head_dim;
      x[r] = exists ? to_float(row<T>(p.x, batch, step)[in_row + r * kApart]) : 0.f;
      z[r] = exists && p.z.data ? to_float(row<T>(p.z, batch, step)[in_row + r * kApart]) : 0.f;
    }
    const SsdStep now = ssd_step_of<T>(p, to_float(row<T>(p.dt, batch, step)[head]),
                                       log_decay_at(p, batch, step, head), A, bias);
    const float decay = exp2_fast(now.decay);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float dt_x = now.dt * x[r];
      float y = 0.f;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
#pragma unroll
        for (int i = 0; i < kV; ++i) {
          float& state = h[r][v][i];
          if (s == 0) state = to_float(packed[r][v].values[i]);
          state = decay * state + dt_x * to_float(Bs[v].values[i]);
          y += state * to_float(Cs[v].values[i]);
        }
      }
#pragma unroll
      for (int apart = kLanes / 2; apart > 0; apart /= 2) y += __shfl_xor_sync(~0u, y, apart);
      if (lane == 0 && first_row + r * kApart < head_dim) {
        y += skip[r] * x[r];
        if (p.z.data) y *= silu<T>(z[r]);
        static_cast<T*>(
            p.y)[(batch * p.length + step) * p.heads * p.head_dim + in_row + r * kApart] =
            from_float<T>(y);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int row = first_row + r * kApart, n = (v * kLanes + lane) * kV;
      if (row >= head_dim || n >= states) continue;
      Pack<R, kV> last;
#pragma unroll
      for (int i = 0; i < kV; ++i) last.values[i] = from_float<R>(h[r][v][i]);
      store_streaming(static_cast<R*>(p.last_state) + (first + row) * states + n, last);
    }
  }
}

template <typename T, typename R, int kLanes, int kVectors, int kRows, bool kIsOne>
cudaError_t launch(const mamba_state_space_dual_params& p, cudaStream_t stream) {
  constexpr int64_t kBlockRows = kThreads / kLanes * kRows;
  const dim3 grid(static_cast<unsigned>((p.head_dim + kBlockRows - 1) / kBlockRows),
                  static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch));
  return launch_overlapping(ssd_step_kernel<T, R, kLanes, kVectors, kRows, kIsOne>, grid,
                            dim3(kThreads), 0, stream, current_gpu().major >= 9, p);
}

// A few heads spread over as many blocks as they can; many take fewer, which start together.
template <typename T, typename R, int kLanes, int kVectors>
cudaError_t launch(const mamba_state_space_dual_params& p, cudaStream_t stream) {
  if (p.length > 1) return launch<T, R, kLanes, kVectors, 1, false>(p, stream);
  const int64_t bytes = p.batch * p.heads * p.head_dim * p.d_state * int64_t{sizeof(R)};
  return bytes < kLargeSsdState ? launch<T, R, kLanes, kVectors, 1, true>(p, stream)
                                : launch<T, R, kLanes, kVectors, kSsdStepRows, true>(p, stream);
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
  if (p.head_dim * p.heads > INT32_MAX || p.n_groups * p.d_state > INT32_MAX) return false;
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
