// State space duality for a d_state that fits no thread's registers: a warp a channel of a head,
// its state in device memory, in fp32 whatever R is.
#include "common/cuda/lanes.cuh"
#include "common/sizes.h"
#include "state_space_dual/cuda/ssd.cuh"

namespace mamba {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 32;

// states: where the state is kept, (batch, heads, head_dim, d_state); may be p.last_state.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    ssd_any_kernel(const __grid_constant__ mamba_state_space_dual_params p, float* states) {
  const int64_t place = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (place >= p.batch * p.heads * p.head_dim) return;  // a whole warp
  const int64_t channel = place % p.head_dim, head = place / p.head_dim % p.heads;
  const int64_t batch = place / p.head_dim / p.heads;
  const int64_t group = head / (p.heads / p.n_groups), at = head * p.head_dim + channel;
  const float A = p.A[head], bias = p.dt_bias[head], skip = skip_at(p, head, channel);
  float* h = states + place * p.d_state;
  // A lane alone reads and writes its states, so all three may be one buffer.
  for (int64_t n = lane; n < p.d_state; n += kLanes) h[n] = load_state<T>(p, place * p.d_state + n);

  for (int64_t s = 0; s < p.length; ++s) {
    const int64_t step = walked(p, s);
    const float x = to_float(row<T>(p.x, batch, step)[at]);
    const SsdStep now = ssd_step_of<T>(p, to_float(row<T>(p.dt, batch, step)[head]),
                                       log_decay_at(p, batch, step, head), A, bias);
    const Decay decay(now.decay);
    const float dt_x = now.dt * x;
    const T* B = row<T>(p.B, batch, step) + group * p.d_state;
    const T* C = row<T>(p.C, batch, step) + group * p.d_state;
    float y = 0.f;
    for (int64_t n = lane; n < p.d_state; n += kLanes) {
      const float next = decay.of(h[n], dt_x * to_float(B[n]));
      h[n] = next;
      y += to_float(C[n]) * next;
    }
    y = warp_sum(y);
    if (lane == 0) {
      y += skip * x;
      if (p.z.data) y *= silu<T>(to_float(row<T>(p.z, batch, step)[at]));
      static_cast<T*>(p.y)[(batch * p.length + step) * p.heads * p.head_dim + at] =
          from_float<T>(y);
    }
  }
  if (h == static_cast<const float*>(p.last_state) + place * p.d_state) return;
  for (int64_t n = lane; n < p.d_state; n += kLanes) store_state<T>(p, place * p.d_state + n, h[n]);
}

}  // namespace

size_t ssd_any_workspace(const mamba_state_space_dual_params& p) {
  if (p.initial_state_dtype == MAMBA_FP32) return 0;  // last_state is the place
  return product(p.batch, p.heads, p.head_dim, p.d_state, sizeof(float));
}

cudaError_t launch_ssd_any(const mamba_state_space_dual_params& p, void* workspace,
                           cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t blocks = product(p.batch, p.heads, p.head_dim, kLanes) / kThreads + 1;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    void* states = p.initial_state_dtype == MAMBA_FP32 ? p.last_state : workspace;
    ssd_any_kernel<T>
        <<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, static_cast<float*>(states));
    return cudaGetLastError();
  });
}

}  // namespace mamba
