// Causal depthwise convolution: a thread walks a run of steps for some neighbouring channels (16
// bytes of them where alignment allows), with the taps' window in registers.
#include "common/checks.h"
#include "common/cuda/gpu.cuh"
#include "common/cuda/kernels.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"

namespace mamba {
namespace {

constexpr int kLanes = 32;      // threads along the channels
constexpr int kRuns = 4;        // runs of a block: they share the weights in the first-level cache
constexpr int kFewTaps = 4;     // as Mamba's models have; kMaxTaps are compiled for more
constexpr int kOneChannel = 1;  // of a thread

// kTaps is d_conv rounded up: missing taps have weight 0. Only the threads of a sequence's first
// run read its initial state, and they write its last state after that: the two may be one buffer.
template <typename T, int kVector, int kTaps, int kRun>
__global__ void __launch_bounds__(kLanes* kRuns)
    conv_kernel(const __grid_constant__ mamba_causal_conv1d_params p, unsigned columns,
                unsigned run_blocks) {
  constexpr int kWindow = kTaps - 1;  // steps before the run that it reads
  constexpr int kWidth = kLanes * kVector;
  static_assert(kRun >= kWindow);
  using Steps = Pack<T, kVector>;
  __shared__ __align__(16) float weights[kTaps][kWidth];
  __shared__ __align__(16) float biases[kWidth];
  let_next_kernel_start();
  wait_for_earlier_kernels();

  const unsigned rest = blockIdx.x / columns;
  const int64_t first = int64_t{blockIdx.x % columns} * kWidth;  // channel of the block
  const int64_t batch = rest / run_blocks;
  const int64_t begin = (int64_t{rest % run_blocks} * kRuns + threadIdx.y) * kRun;
  const int lane = static_cast<int>(threadIdx.x) * kVector;
  const int64_t channel = first + lane;
  const bool exists = channel < p.channels && begin < p.length;
  const int taps = static_cast<int>(p.d_conv), kept = taps - 1;

  const int64_t stride = p.reverse ? -p.x.step_stride : p.x.step_stride;
  const int64_t origin = p.reverse ? p.length - 1 : 0;  // the walk's first step
  const T* x = static_cast<const T*>(p.x.data) + batch * p.x.batch_stride +
               origin * p.x.step_stride + channel;
  const T* past = static_cast<const T*>(p.initial_state) + (batch * p.channels + channel) * kept;
  const auto load = [&](int64_t s) { return *reinterpret_cast<const Steps*>(x + s * stride); };
  // A step before the first, at -1 and down: the state's.
  const auto load_past = [&](int64_t s) {
    Steps values;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      values.values[v] = s >= -kept ? past[v * kept + kept + s] : from_float<T>(0.f);
    }
    return values;
  };

  // Under way while the weights are brought: nothing waits for them before the block's barrier.
  Steps input[kWindow + kRun];
  if (exists) {
    if (begin > 0) {
#pragma unroll
      for (int i = 0; i < kWindow; ++i) input[i] = load(begin + i - kWindow);
    } else {
#pragma unroll
      for (int i = 0; i < kWindow; ++i) input[i] = load_past(i - kWindow);
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int64_t s = begin + i;
      input[kWindow + i] = load(s < p.length ? s : p.length - 1);
    }
  }

  const int count = static_cast<int>(p.channels - first < kWidth ? p.channels - first : kWidth);
  const int thread = static_cast<int>(threadIdx.y * kLanes + threadIdx.x);
  for (int i = thread; i < kTaps * kWidth; i += kLanes * kRuns) {
    const int at = i / kTaps, k = i % kTaps, tap = k - (kTaps - taps);
    weights[k][at] = at < count && tap >= 0 ? p.weight[(first + at) * taps + tap] : 0.f;
  }
  for (int i = thread; i < kWidth; i += kLanes * kRuns) {
    biases[i] = i < count ? p.bias[first + i] : 0.f;
  }
  __syncthreads();
  if (!exists) return;

  if (begin == 0 && kept > 0) {
    T* last = static_cast<T*>(p.last_state) + (batch * p.channels + channel) * kept;
    Steps tail[kWindow];
#pragma unroll
    for (int i = 0; i < kWindow; ++i) {
      const int64_t s = p.length - kept + i;
      if (i < kept) tail[i] = s < 0 ? load_past(s) : load(s);
    }
#pragma unroll
    for (int i = 0; i < kWindow; ++i) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        if (i < kept) last[v * kept + i] = tail[i].values[v];
      }
    }
  }

  float weight[kTaps][kVector], bias[kVector];
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    bias[v] = biases[lane + v];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) weight[k][v] = weights[k][lane + v];
  }
  const int64_t y_stride = p.reverse ? -p.channels : p.channels;
  T* y = static_cast<T*>(p.y) + (batch * p.length + origin) * p.channels + channel;
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
    *reinterpret_cast<Steps*>(y + (begin + i) * y_stride) = result;
  }
}

template <typename T, int kVector, int kTaps, int kRun>
cudaError_t launch(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  constexpr int64_t kWidth = kLanes * kVector, kSteps = kRuns * kRun;
  const int64_t columns = (p.channels + kWidth - 1) / kWidth;
  const int64_t run_blocks = (p.length + kSteps - 1) / kSteps;
  const int64_t blocks = columns * run_blocks * p.batch;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch_overlapping(conv_kernel<T, kVector, kTaps, kRun>,
                            dim3(static_cast<unsigned>(blocks)), dim3(kLanes, kRuns), 0, stream,
                            current_gpu().major >= 9, p, static_cast<unsigned>(columns),
                            static_cast<unsigned>(run_blocks));
}

template <typename T, int kVector>
cudaError_t launch_taps(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  // One channel a thread: the window of more taps fills its registers.
  if (p.d_conv > kFewTaps) return launch<T, kOneChannel, kMaxTaps, kLongRun>(p, stream);
  const bool is_large = p.batch * p.length * p.channels >= current_tuning().large_convolution;
  return is_large ? launch<T, kVector, kFewTaps, kLongRun>(p, stream)
                  : launch<T, kVector, kFewTaps, kShortRun>(p, stream);
}

}  // namespace

cudaError_t launch_conv(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kVector = 16 / sizeof(T);
    const bool is_wide = p.channels % kVector == 0 && is_aligned<16>(p.y, 0, sizeof(T)) &&
                         is_aligned<16>(p.x.data, p.x.batch_stride, sizeof(T)) &&
                         is_aligned<16>(p.x.data, p.x.step_stride, sizeof(T));
    return is_wide ? launch_taps<T, kVector>(p, stream) : launch_taps<T, kOneChannel>(p, stream);
  });
}

}  // namespace mamba
