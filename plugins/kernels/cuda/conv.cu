// Causal depthwise convolution: a thread walks a run of steps for some neighbouring channels (16
// bytes of them where alignment allows), with the taps' window in registers.
#include "kernels.cuh"
#include "numeric.cuh"

namespace mamba {
namespace {

constexpr int kLanes = 32;  // threads along the channels
constexpr int kRuns = 4;    // runs of a block: they share the weights in the first-level cache

// kTaps is d_conv rounded up: missing taps have weight 0. Only the threads of a sequence's first
// run read its initial state, and they write its last state after that: the two may be one buffer.
template <typename T, int kVector, int kTaps, int kRun>
__global__ void __launch_bounds__(kLanes* kRuns)
    conv_kernel(const __grid_constant__ mamba_causal_conv1d_params p) {
  static_assert(kRun >= kTaps - 1);
  using Steps = Pack<T, kVector>;
  const int64_t vectors = (p.channels + kVector - 1) / kVector;
  const int64_t columns = (vectors + kLanes - 1) / kLanes;
  const int64_t runs = (p.length + kRun - 1) / kRun;
  const int64_t vector = blockIdx.x % columns * kLanes + threadIdx.x;
  const int64_t run = blockIdx.x / columns * kRuns + threadIdx.y;  // over all sequences
  if (vector >= vectors || run >= runs * p.batch) return;
  const int64_t batch = run / runs, begin = run % runs * kRun;
  const int64_t channel = vector * kVector;
  const int taps = static_cast<int>(p.d_conv), kept = taps - 1;

  const T* x = static_cast<const T*>(p.x.data) + batch * p.x.batch_stride + channel;
  const T* past = static_cast<const T*>(p.initial_state) + (batch * p.channels + channel) * kept;
  const auto step_of = [&](int64_t s) { return p.reverse ? p.length - 1 - s : s; };
  // Channel v at a step of the walk; steps before the first are the state's.
  const auto load = [&](int64_t s) {
    Steps values;
    if (s >= 0) {
      if (s < p.length) values = *reinterpret_cast<const Steps*>(x + step_of(s) * p.x.step_stride);
    } else {
#pragma unroll
      for (int v = 0; v < kVector; ++v) values.values[v] = past[v * kept + kept + s];
    }
    return values;
  };

  Steps input[kTaps - 1 + kRun];  // of steps begin - (kTaps - 1) and on
#pragma unroll
  for (int i = 0; i < kTaps - 1 + kRun; ++i) {
    const int64_t s = begin + i - (kTaps - 1);
    if (s >= -kept) {
      input[i] = load(s);
    } else {
#pragma unroll
      for (int v = 0; v < kVector; ++v) input[i].values[v] = from_float<T>(0.f);
    }
  }
  if (begin == 0 && kept > 0) {
    T* last = static_cast<T*>(p.last_state) + (batch * p.channels + channel) * kept;
    Steps tail[kTaps - 1];
#pragma unroll
    for (int i = 0; i < kTaps - 1; ++i) {
      if (i < kept) tail[i] = load(p.length - kept + i);
    }
#pragma unroll
    for (int i = 0; i < kTaps - 1; ++i) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        if (i < kept) last[v * kept + i] = tail[i].values[v];
      }
    }
  }

  float weight[kTaps][kVector], bias[kVector];
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    bias[v] = p.bias[channel + v];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      const int tap = k - (kTaps - taps);
      weight[k][v] = tap >= 0 ? p.weight[(channel + v) * taps + tap] : 0.f;
    }
  }
  T* y = static_cast<T*>(p.y) + batch * p.length * p.channels + channel;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (begin + i >= p.length) break;
    Steps result;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      float sum = bias[v];
#pragma unroll
      for (int k = 0; k < kTaps; ++k) sum += weight[k][v] * to_float(input[i + k].values[v]);
      result.values[v] = from_float<T>(p.silu ? silu<T>(sum) : sum);
    }
    *reinterpret_cast<Steps*>(y + step_of(begin + i) * p.channels) = result;
  }
}

template <typename T, int kVector, int kTaps, int kRun>
cudaError_t launch(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  const int64_t vectors = (p.channels + kVector - 1) / kVector;
  const int64_t runs = (p.length + kRun - 1) / kRun * p.batch;
  const int64_t blocks = (vectors + kLanes - 1) / kLanes * ((runs + kRuns - 1) / kRuns);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  conv_kernel<T, kVector, kTaps, kRun>
      <<<static_cast<unsigned>(blocks), dim3(kLanes, kRuns), 0, stream>>>(p);
  return cudaGetLastError();
}

template <typename T, int kVector>
cudaError_t launch_taps(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  // One channel a thread: the window of more taps fills its registers.
  if (p.d_conv > 4) return launch<T, 1, 16, 16>(p, stream);
  // Long runs read fewer steps twice; short ones give a small input more threads.
  const bool is_large = p.batch * p.length * p.channels >= int64_t{1} << 24;
  return is_large ? launch<T, kVector, 4, 16>(p, stream) : launch<T, kVector, 4, 8>(p, stream);
}

}  // namespace

cudaError_t launch_conv(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kVector = 16 / sizeof(T);
    const bool is_wide = p.channels % kVector == 0 && is_aligned<16>(p.y, 0, sizeof(T)) &&
                         is_aligned<16>(p.x.data, p.x.batch_stride, sizeof(T)) &&
                         is_aligned<16>(p.x.data, p.x.step_stride, sizeof(T));
    return is_wide ? launch_taps<T, kVector>(p, stream) : launch_taps<T, 1>(p, stream);
  });
}

}  // namespace mamba
