// Causal depthwise convolution: a thread has a few steps of some neighbouring channels and loads
// all that it reads before it computes. Blocks are short, and there are many of them, side by side
// along the channels and then the steps: memory is read and written in order, at the rate of a
// copy.
#include <algorithm>
#include <type_traits>

#include "common/checks.h"
#include "common/cuda/gpu.cuh"
#include "common/cuda/kernels.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/sequence.cuh"
#include "common/cuda/tuning.cuh"
#include "common/sizes.h"

namespace mamba {
namespace {

constexpr int kLanes = 32;      // threads along the channels
constexpr int kTiles = 4;       // of a block: they share the weights in the first-level cache
constexpr int kFewTaps = 4;     // as Mamba's models have; kMaxTaps are compiled for more
constexpr int kOneChannel = 1;  // of a thread
constexpr int kOneStep = 1;     // of the whole length
constexpr int kLineBytes = 128;

// How the blocks are laid out: `columns` blocks along the channels, then `rows` along the steps,
// then the batch; the first `early` of them start at once.
struct ConvGrid {
  unsigned columns, rows, early;
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
// states are aligned. Only the threads of a sequence's first steps read its initial state, and they
// write its last state after that: the two may be one buffer.
template <typename T, typename Tile, int kTaps, bool kIsExact, bool kHasSilu>
__global__ void __launch_bounds__(kLanes* kTiles, Tile::kBlocks)
    conv_kernel(const __grid_constant__ mamba_causal_conv1d_params p, const ConvGrid grid) {
  constexpr int kVector = kIsExact ? Tile::kBytes / sizeof(T) : kOneChannel, kSteps = Tile::kSteps;
  constexpr int kWindow = kTaps - 1;  // steps before its own that a thread reads
  static_assert(kSteps >= kWindow || kSteps == kOneStep);  // it lies in the tile ahead alone
  using Steps = Pack<T, kVector>;
  let_next_kernel_start();

  const unsigned rest = blockIdx.x / grid.columns;
  const int channel =
      static_cast<int>((blockIdx.x % grid.columns) * kLanes + threadIdx.x) * kVector;
  const int64_t batch = rest / grid.rows;
  const int begin = static_cast<int>((rest % grid.rows) * blockDim.y + threadIdx.y) * kSteps;
  const int channels = static_cast<int>(p.channels), length = static_cast<int>(p.length);
  const bool exists = channel < channels && begin < length;
  const bool is_whole = begin + kSteps <= length;
  const int taps = kIsExact ? kTaps : static_cast<int>(p.d_conv), kept = taps - 1;

  const int64_t stride = p.reverse ? -p.x.step_stride : p.x.step_stride;
  const int64_t origin = p.reverse ? length - 1 : 0;  // the walk's first step
  const T* x = static_cast<const T*>(p.x.data) + batch * p.x.batch_stride +
               origin * p.x.step_stride + channel;
  const auto load = [&](int s) { return *reinterpret_cast<const Steps*>(x + s * stride); };
  // While the kernel ahead still runs, what the first blocks read is on its way.
  constexpr int kLineLanes = kLineBytes / static_cast<int>(sizeof(Steps));
  if (exists && blockIdx.x < grid.early && threadIdx.x % kLineLanes == 0) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) prefetch(x + min(begin + i, length - 1) * stride);
  }
  const float* weights = p.weight + int64_t{channel} * taps;
  if (kIsExact && exists) prefetch(weights);
  wait_for_earlier_kernels();
  if (!exists) return;

  Steps input[kWindow + kSteps];
  if (is_whole) {
    const T* from = x + begin * stride;
#pragma unroll
    for (int i = 0; i < kSteps; ++i, from += stride) {
      input[kWindow + i] = *reinterpret_cast<const Steps*>(from);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) input[kWindow + i] = load(min(begin + i, length - 1));
  }
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
  const auto compute = [&](auto all) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i, y += y_stride) {
      Steps result;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        float sum = bias[v];
#pragma unroll
        for (int k = 0; k < kTaps; ++k) {
          sum += weight[v * kTaps + k] * to_float(input[i + k].values[v]);
        }
        result.values[v] = from_float<T>(kHasSilu ? silu<T>(sum) : sum);
      }
      if (decltype(all)::value || begin + i < length) *reinterpret_cast<Steps*>(y) = result;
    }
  };
  is_whole ? compute(std::true_type()) : compute(std::false_type());
}

template <typename T, typename Tile, int kTaps, bool kIsExact, bool kHasSilu>
cudaError_t launch(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  constexpr int kVector = kIsExact ? Tile::kBytes / sizeof(T) : kOneChannel;
  constexpr int64_t kWidth = kLanes * kVector;
  const auto kernel = conv_kernel<T, Tile, kTaps, kIsExact, kHasSilu>;
  const int64_t columns = (p.channels + kWidth - 1) / kWidth;
  const int64_t tiles = (p.length + Tile::kSteps - 1) / Tile::kSteps;
  const int64_t tiles_of_block = std::min<int64_t>(tiles, kTiles);
  const int64_t rows = (tiles + tiles_of_block - 1) / tiles_of_block;
  const int64_t blocks = product(columns, rows, p.batch);
  constexpr int64_t kMost = INT32_MAX - kTiles * Tile::kSteps;
  if (blocks > kMost || p.length > kMost || p.channels > kMost - kWidth) {
    return cudaErrorInvalidConfiguration;
  }
  const ConvGrid grid = {static_cast<unsigned>(columns), static_cast<unsigned>(rows),
                         static_cast<unsigned>(current_gpu().multiprocessors * Tile::kBlocks)};
  return launch_overlapping(kernel, dim3(static_cast<unsigned>(blocks)),
                            dim3(kLanes, static_cast<unsigned>(tiles_of_block)), 0, stream,
                            current_gpu().major >= 9, p, grid);
}

template <typename T, typename Tile, int kTaps = kFewTaps, bool kIsExact = true>
cudaError_t launch(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  return p.silu ? launch<T, Tile, kTaps, kIsExact, true>(p, stream)
                : launch<T, Tile, kTaps, kIsExact, false>(p, stream);
}

template <typename T>
cudaError_t launch(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  constexpr int kBytes = ConvOfMany::kBytes;
  static_assert(ConvOfStep::kBytes == kBytes && ConvOfFew::kBytes <= kBytes);
  // One channel a thread: the window of more taps fills its registers.
  if (p.d_conv > kFewTaps) return launch<T, ConvOfAny, kMaxTaps, false>(p, stream);
  const bool is_exact = p.d_conv == kFewTaps && p.channels % (kBytes / sizeof(T)) == 0 &&
                        rows_aligned<kBytes>(p.x, sizeof(T)) && is_aligned<kBytes>(p.y, 0, 1) &&
                        is_aligned<kBytes>(p.initial_state, 0, 1) &&
                        is_aligned<kBytes>(p.last_state, 0, 1) && is_aligned<16>(p.weight, 0, 1) &&
                        is_aligned<16>(p.bias, 0, 1);
  if (!is_exact) return launch<T, ConvOfAny, kFewTaps, false>(p, stream);
  if (p.length == kOneStep) return launch<T, ConvOfStep>(p, stream);
  const bool is_large = p.batch * p.length * p.channels >= current_tuning().large_convolution;
  return is_large ? launch<T, ConvOfMany>(p, stream) : launch<T, ConvOfFew>(p, stream);
}

}  // namespace

cudaError_t launch_conv(const mamba_causal_conv1d_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    return launch<std::remove_pointer_t<decltype(type)>>(p, stream);
  });
}

}  // namespace mamba
