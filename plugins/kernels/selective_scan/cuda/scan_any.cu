// Scan for a d_state that fits no thread's registers, and for exact zero-order hold: a warp a
// channel, its state in device memory.
#include "common/cuda/lanes.cuh"
#include "common/sizes.h"
#include "selective_scan/cuda/scan.cuh"

namespace mamba {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 32;

// What stays of a state, and what enters of u B.
struct StepWeights {
  float decay, hold;
};
template <bool kExactZoh>
__device__ __forceinline__ StepWeights step_weights(float dt, float A, float shift) {
  if constexpr (!kExactZoh) return {decay_of(dt, A * kLog2e, shift), dt};
  // Next to 1 the fast exponential is off to one side, which many small steps would add up.
  const float change = expm1f(dt * A), decay = change > -0.5f ? 1.f + change : expf(dt * A);
  return {decay, fabsf(A) < 1e-19f ? dt : change / A};
}

template <typename T, bool kExactZoh>
__global__ void __launch_bounds__(kThreads)
    scan_any_kernel(const __grid_constant__ mamba_selective_scan_params p) {
  const int64_t place = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (place >= p.batch * p.d_inner) return;  // a whole warp
  const int64_t batch = place / p.d_inner, channel = place % p.d_inner;
  const int64_t group = channel / (p.d_inner / p.n_groups);
  const float* A = p.A + channel * p.d_state;
  const float* past = p.initial_state ? p.initial_state + place * p.d_state : nullptr;
  float* h = p.last_state + place * p.d_state;
  // A lane alone reads and writes its states, so the two may be one buffer.
  for (int64_t n = lane; n < p.d_state; n += kLanes) h[n] = past ? past[n] : 0.f;

  for (int64_t s = 0; s < p.length; ++s) {
    const int64_t step = walked(p, s);
    const float u = to_float(row<T>(p.u, batch, step)[channel]);
    float dt = to_float(row<T>(p.delta, batch, step)[channel]) + p.delta_bias[channel];
    if (p.delta_softplus) dt = softplus<T>(dt);
    const T* B = row<T>(p.B, batch, step) + group * p.d_state;
    const T* C = row<T>(p.C, batch, step) + group * p.d_state;
    const float shift = decay_shift(static_cast<int>(s % kDecayShifts));
    float y = 0.f;
    for (int64_t n = lane; n < p.d_state; n += kLanes) {
      const StepWeights weights = step_weights<kExactZoh>(dt, A[n], shift);
      const float next = weights.decay * h[n] + weights.hold * u * to_float(B[n]);
      h[n] = next;
      y += to_float(C[n]) * next;
    }
    y = warp_sum(y);
    if (lane == 0) {
      y += p.D[channel] * u;
      if (p.z.data) y *= silu<T>(to_float(row<T>(p.z, batch, step)[channel]));
      static_cast<T*>(p.y)[(batch * p.length + step) * p.d_inner + channel] = from_float<T>(y);
    }
  }
}

}  // namespace

cudaError_t launch_scan_any(const mamba_selective_scan_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t blocks = product(p.batch, p.d_inner, kLanes) / kThreads + 1;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    const auto kernel = p.exact_zoh ? scan_any_kernel<T, true> : scan_any_kernel<T, false>;
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
    return cudaGetLastError();
  });
}

}  // namespace mamba
