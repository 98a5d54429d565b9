// Causal depthwise convolution: a thread walks a run of steps for some neighbouring channels, a
// chunk of steps at a time, with the taps' window in registers. While it computes one chunk, the
// next is on its way.
#include <algorithm>

#include "common/checks.h"
#include "common/cuda/gpu.cuh"
#include "common/cuda/kernels.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/sequence.cuh"
#include "common/cuda/tuning.cuh"

namespace mamba {
namespace {

constexpr int kLanes = 32;      // threads along the channels
constexpr int kRuns = 4;        // runs of a block: they share the weights in the first-level cache
constexpr int kFewTaps = 4;     // as Mamba's models have; kMaxTaps are compiled for more
constexpr int kOneChannel = 1;  // of a thread
constexpr int kOneStep = 1;     // of a chunk, and of the whole length
constexpr int kLineBytes = 128;

// How the blocks are laid out: `columns` blocks along the channels, then `run_blocks` along the
// runs, each of `run` steps, then the batch.
struct ConvGrid {
  unsigned columns, run_blocks;
  int run;
};

// Count numbers from `from`, kVector of them an access where that is aligned.
template <typename T, int kVector, int kCount>
__device__ __forceinline__ void load_numbers(const T* from, T (&to)[kCount]) {
  static_assert(kCount % kVector == 0);
#pragma unroll
  for (int i = 0; i < kCount; i += kVector) {
    const auto pack = *reinterpret_cast<const Pack<T, kVector>*>(from + i);
#pragma unroll
    for (int j = 0; j < kVector; ++j) to[i + j] = pack.values[j];
  }
}

// kTaps is d_conv rounded up: missing taps have weight 0. kIsExact: it is d_conv, and weights and
// states are aligned. Only the threads of a sequence's first run read its initial state, and they
// write its last state after that: the two may be one buffer.
template <typename T, int kVector, int kTaps, int kChunk, bool kIsExact>
__global__ void __launch_bounds__(kLanes* kRuns)
    conv_kernel(const __grid_constant__ mamba_causal_conv1d_params p, const ConvGrid grid) {
  constexpr int kWindow = kTaps - 1;  // steps before the chunk that it reads
  using Steps = Pack<T, kVector>;
  let_next_kernel_start();

  const unsigned rest = blockIdx.x / grid.columns;
  const int channel =
      static_cast<int>((blockIdx.x % grid.columns) * kLanes + threadIdx.x) * kVector;
  const int64_t batch = rest / grid.run_blocks;
  const int begin =
      static_cast<int>((rest % grid.run_blocks) * blockDim.y + threadIdx.y) * grid.run;
  const int channels = static_cast<int>(p.channels), length = static_cast<int>(p.length);
  const bool exists = channel < channels && begin < length;
  const int end = min(begin + grid.run, length);
  const int taps = kIsExact ? kTaps : static_cast<int>(p.d_conv), kept = taps - 1;

  const int64_t stride = p.reverse ? -p.x.step_stride : p.x.step_stride;
  const int64_t origin = p.reverse ? length - 1 : 0;  // the walk's first step
  const T* x = static_cast<const T*>(p.x.data) + batch * p.x.batch_stride +
               origin * p.x.step_stride + channel;
  const auto load = [&](int s) { return *reinterpret_cast<const Steps*>(x + s * stride); };
  // While the kernel ahead still runs, what the first chunk reads is on its way.
  constexpr int kLineLanes = kLineBytes / static_cast<int>(sizeof(Steps));
  if (exists && threadIdx.x % kLineLanes == 0) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) prefetch(x + min(begin + i, length - 1) * stride);
  }
  const float* weights = p.weight + int64_t{channel} * taps;
  if (kIsExact && exists) prefetch(weights);
  wait_for_earlier_kernels();
  if (!exists) return;

  Steps input[kWindow + kChunk];
  const auto load_chunk = [&](int first, Steps* to) {
    if (first + kChunk <= length) {
      const T* from = x + first * stride;
#pragma unroll
      for (int i = 0; i < kChunk; ++i, from += stride) {
        to[i] = *reinterpret_cast<const Steps*>(from);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) to[i] = load(min(first + i, length - 1));
    }
  };
  load_chunk(begin, input + kWindow);
  if (begin > 0) {
#pragma unroll
    for (int i = 0; i < kWindow; ++i) input[i] = load(begin + i - kWindow);
  } else {
    T past[kVector * kWindow];  // (channels, steps), zeros ahead of what is kept
    const int64_t place = (batch * channels + channel) * kept;
    const T* states = static_cast<const T*>(p.initial_state) + place;
    if constexpr (kIsExact) {
      load_numbers<T, kVector>(states, past);
    } else {
#pragma unroll
      for (int i = 0; i < kVector * kWindow; ++i) {
        const int v = i / kWindow, step = i % kWindow - (kWindow - kept);
        past[i] = step >= 0 ? states[v * kept + step] : from_float<T>(0.f);
      }
    }
#pragma unroll
    for (int i = 0; i < kWindow; ++i) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) input[i].values[v] = past[v * kWindow + i];
    }
    T last[kVector * kWindow];
#pragma unroll
    for (int i = 0; i < kWindow; ++i) {
      const int s = length - kWindow + i;
      Steps tail = {};
      if (s >= 0) {
        tail = load(s);
      } else {
        // The window's own step s, which an index known when compiling picks.
#pragma unroll
        for (int j = 0; j < kWindow; ++j) {
          if (j - kWindow == s) tail = input[j];
        }
      }
#pragma unroll
      for (int v = 0; v < kVector; ++v) last[v * kWindow + i] = tail.values[v];
    }
    T* last_states = static_cast<T*>(p.last_state) + place;
    if constexpr (kIsExact) {
#pragma unroll
      for (int i = 0; i < kVector * kWindow; i += kVector) {
        Steps pack;
#pragma unroll
        for (int j = 0; j < kVector; ++j) pack.values[j] = last[i + j];
        *reinterpret_cast<Steps*>(last_states + i) = pack;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVector * kWindow; ++i) {
        const int v = i / kWindow, step = i % kWindow - (kWindow - kept);
        if (step >= 0) last_states[v * kept + step] = last[i];
      }
    }
  }

  float weight[kVector * kTaps], bias[kVector];
  if constexpr (kIsExact) {
    load_numbers<float, kTaps>(weights, weight);
    load_numbers<float, kVector>(p.bias + channel, bias);
  } else {
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      bias[v] = p.bias[channel + v];
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        const int tap = k - (kTaps - taps);
        weight[v * kTaps + k] = tap >= 0 ? weights[v * taps + tap] : 0.f;
      }
    }
  }

  const int64_t y_stride = p.reverse ? -int64_t{channels} : int64_t{channels};
  T* y = static_cast<T*>(p.y) + (batch * length + origin) * channels + channel + begin * y_stride;
  for (int s = begin; s < end; s += kChunk) {
    Steps next[kChunk] = {};
    if (kChunk > kOneStep && s + kChunk < end) load_chunk(s + kChunk, next);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      Steps result;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        float sum = bias[v];
#pragma unroll
        for (int k = 0; k < kTaps; ++k) {
          sum += weight[v * kTaps + k] * to_float(input[i + k].values[v]);
        }
        result.values[v] = from_float<T>(p.silu ? silu<T>(sum) : sum);
      }
      if (s + i < end) *reinterpret_cast<Steps*>(y) = result;
      y += y_stride;
    }
#pragma unroll
    for (int i = 0; i < kWindow; ++i) input[i] = input[i + kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) input[kWindow + i] = next[i];
  }
}

// The steps of a thread: as few as let all threads run at once, `threads` of them for every run.
template <typename Kernel>
int steps_of_run(Kernel kernel, int64_t length, int64_t threads, int chunk, int window) {
  int blocks = 0;  // of a multiprocessor
  if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kLanes * kRuns, 0)) return 0;
  const int64_t most = int64_t{current_gpu().multiprocessors} * blocks * kLanes * kRuns;
  const int64_t runs = std::max<int64_t>(1, most / threads);
  // A run's window lies in the run ahead of it alone.
  const int64_t least = std::max<int64_t>((length + runs - 1) / runs, window);
  const int64_t run = std::min<int64_t>((least + chunk - 1) / chunk * chunk, kLongestConvRun);
  return static_cast<int>(run);
}

template <typename T, int kVector, int kTaps, int kChunk, bool kIsExact>
cudaError_t launch(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  constexpr int64_t kWidth = kLanes * kVector;
  static_assert(kLongestConvRun >= kTaps + kChunk);
  const auto kernel = conv_kernel<T, kVector, kTaps, kChunk, kIsExact>;
  const int64_t columns = (p.channels + kWidth - 1) / kWidth;
  const int run = steps_of_run(kernel, p.length, p.batch * columns * kLanes, kChunk, kTaps - 1);
  if (run == 0) return cudaGetLastError();
  const int64_t runs = (p.length + run - 1) / run, rows = std::min<int64_t>(runs, kRuns);
  const int64_t run_blocks = (runs + rows - 1) / rows;
  const int64_t blocks = columns * run_blocks * p.batch;
  constexpr int64_t kMost = INT32_MAX - kLanes * kRuns * kLongestConvRun;
  if (blocks > kMost || p.length > kMost || p.channels > kMost) {
    return cudaErrorInvalidConfiguration;
  }
  const ConvGrid grid = {static_cast<unsigned>(columns), static_cast<unsigned>(run_blocks), run};
  return launch_overlapping(kernel, dim3(static_cast<unsigned>(blocks)),
                            dim3(kLanes, static_cast<unsigned>(rows)), 0, stream,
                            current_gpu().major >= 9, p, grid);
}

template <typename T, typename Tile>
cudaError_t launch_exact(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  return launch<T, Tile::kBytes / sizeof(T), kFewTaps, Tile::kChunk, true>(p, stream);
}

template <typename T>
cudaError_t launch(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  constexpr int kChunk = ConvOfFew::kChunk, kBytes = ConvOfMany::kBytes;
  static_assert(ConvOfStep::kBytes == kBytes && ConvOfFew::kBytes <= kBytes);
  // One channel a thread: the window of more taps fills its registers.
  if (p.d_conv > kFewTaps) return launch<T, kOneChannel, kMaxTaps, kChunk, false>(p, stream);
  const bool is_exact = p.d_conv == kFewTaps && p.channels % (kBytes / sizeof(T)) == 0 &&
                        rows_aligned<kBytes>(p.x, sizeof(T)) && is_aligned<kBytes>(p.y, 0, 1) &&
                        is_aligned<kBytes>(p.initial_state, 0, 1) &&
                        is_aligned<kBytes>(p.last_state, 0, 1) && is_aligned<16>(p.weight, 0, 1) &&
                        is_aligned<16>(p.bias, 0, 1);
  if (!is_exact) return launch<T, kOneChannel, kFewTaps, kChunk, false>(p, stream);
  if (p.length == kOneStep) return launch_exact<T, ConvOfStep>(p, stream);
  const bool is_large = p.batch * p.length * p.channels >= current_tuning().large_convolution;
  return is_large ? launch_exact<T, ConvOfMany>(p, stream) : launch_exact<T, ConvOfFew>(p, stream);
}

}  // namespace

cudaError_t launch_conv(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    return launch<std::remove_pointer_t<decltype(type)>>(p, stream);
  });
}

}  // namespace mamba
