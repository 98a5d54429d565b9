// Scan over a few steps: the state is read once, written once, and that is nearly all of the time.
//
// kLanes neighbouring lanes share a channel, each with kQuads times 4 states, 16 bytes an access.
#include "scan.cuh"

namespace mamba {
namespace {

constexpr int kThreads = 128;

// 4 numbers from `from`, of which count exist.
template <typename T>
__device__ __forceinline__ void load_four(const T* from, int count, bool is_aligned,
                                          float (&to)[4]) {
  if (is_aligned && count >= 4) {
    const auto four = *reinterpret_cast<const Pack<T, 4>*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = to_float(four.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = i < count ? to_float(from[i]) : 0.f;
  }
}

template <typename T, int kLanes, int kQuads>
__global__ void __launch_bounds__(kThreads)
    scan_step_kernel(const __grid_constant__ mamba_selective_scan_params p, bool states_aligned,
                     bool inputs_aligned) {
  const int64_t index = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const bool exists = index < p.batch * p.d_inner;
  // Lanes past the end stay for the shuffles and work on the last channel.
  const int64_t place = exists ? index : p.batch * p.d_inner - 1;
  const int64_t batch = place / p.d_inner, channel = place % p.d_inner;
  const int64_t group = channel / (p.d_inner / p.n_groups);
  const int states = static_cast<int>(p.d_state);

  float h[kQuads][4], A[kQuads][4];
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int n = (q * kLanes + lane) * 4;
    load_four(p.initial_state + place * p.d_state + n, states - n, states_aligned, h[q]);
    load_four(p.A + channel * p.d_state + n, states - n, states_aligned, A[q]);
#pragma unroll
    for (int i = 0; i < 4; ++i) A[q][i] *= kLog2e;
  }
  const float bias = p.delta_bias[channel], D = p.D[channel];

  for (int64_t s = 0; s < p.length; ++s) {
    const int64_t step = walked(p, s);
    const float u = to_float(row<T>(p.u, batch, step)[channel]);
    float dt = to_float(row<T>(p.delta, batch, step)[channel]) + bias;
    const float z = p.z.data ? to_float(row<T>(p.z, batch, step)[channel]) : 0.f;
    if (p.delta_softplus) dt = softplus<T>(dt);
    const float du = dt * u;
    float y = 0.f;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int n = (q * kLanes + lane) * 4;
      float B[4], C[4];
      load_four(row<T>(p.B, batch, step) + group * p.d_state + n, states - n, inputs_aligned, B);
      load_four(row<T>(p.C, batch, step) + group * p.d_state + n, states - n, inputs_aligned, C);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        h[q][i] = exp2_fast(dt * A[q][i]) * h[q][i] + du * B[i];
        y += C[i] * h[q][i];
      }
    }
#pragma unroll
    for (int apart = kLanes / 2; apart > 0; apart /= 2) y += __shfl_xor_sync(~0u, y, apart);
    if (exists && lane == 0) {
      y += D * u;
      if (p.z.data) y *= silu<T>(z);
      static_cast<T*>(p.y)[(batch * p.length + step) * p.d_inner + channel] = from_float<T>(y);
    }
  }
  if (!exists) return;
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int n = (q * kLanes + lane) * 4;
    float* last = p.last_state + place * p.d_state + n;
    if (states_aligned && n < states) {
      *reinterpret_cast<float4*>(last) = make_float4(h[q][0], h[q][1], h[q][2], h[q][3]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (n + i < states) last[i] = h[q][i];
      }
    }
  }
}

template <typename T, int kLanes, int kQuads>
cudaError_t launch(const mamba_selective_scan_params& p, cudaStream_t stream) {
  constexpr int kChannels = kThreads / kLanes;
  const int64_t blocks = (p.batch * p.d_inner + kChannels - 1) / kChannels;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const bool fours = p.d_state % 4 == 0;
  const bool states_aligned = fours && is_aligned<16>(p.A, 0, 4) &&
                              is_aligned<16>(p.initial_state, 0, 4) &&
                              is_aligned<16>(p.last_state, 0, 4);
  const bool inputs_aligned = fours && rows_aligned<4 * sizeof(T)>(p.B, sizeof(T)) &&
                              rows_aligned<4 * sizeof(T)>(p.C, sizeof(T));
  scan_step_kernel<T, kLanes, kQuads>
      <<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, states_aligned, inputs_aligned);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_scan_step(const mamba_selective_scan_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (p.d_state <= 4) return launch<T, 1, 1>(p, stream);
    if (p.d_state <= 16) return launch<T, 4, 1>(p, stream);
    if (p.d_state <= 64) return launch<T, 8, 2>(p, stream);
    if (p.d_state <= 128) return launch<T, 16, 2>(p, stream);
    return launch<T, 32, 2>(p, stream);
  });
}

}  // namespace mamba
