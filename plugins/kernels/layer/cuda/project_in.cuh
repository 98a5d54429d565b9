// The first kernel of a layer's step: norm, in_proj, and the convolution over some of its columns.
#pragma once

#include "layer/cuda/gemv.cuh"
#include "layer/cuda/launch.cuh"
#include "layer/cuda/normalise.cuh"

namespace mamba {
namespace step {

constexpr int kInColumns = kInProjBlock.columns, kInThreads = kInProjBlock.threads;
constexpr int kLine = 32;                  // numbers of fp32 in a line of the L2 cache
static_assert(padded(1) % kGemvRun == 0);  // RowProduct asks it of rows of x

template <typename T, int Rows, bool IsVector>
using InProduct = RowProduct<T, T, kInColumns, kInThreads, Rows, IsVector, kLateX>;

// Parts of a block's shared memory, in bytes from its start.
struct InShared {
  size_t x, partial, window, taps, sums, bytes;

  __host__ __device__ InShared(const ProjectIn& s, int rows, size_t element) {
    const int64_t span = s.d_conv - 1 + s.length;
    x = 0;
    partial = x + rows * padded(s.d_model) * element;
    window = partial + sizeof(float) * (kInThreads / 32) * rows * kInColumns;
    taps = window + sizeof(float) * s.batch * span * kInColumns;
    sums = taps + sizeof(float) * (s.d_conv + 1) * kInColumns;  // the bias is the last tap
    bytes = sums + sizeof(float) * norm_sums<kInThreads>(rows, 1);
  }
};

template <typename R, typename T, int Rows>
__device__ void normalise_hidden(const ProjectIn& s, T* x, float* sums) {
  const NormSizes sizes = {s.rows, s.d_model, 1, s.epsilon};
  const R* hidden = static_cast<const R*>(s.hidden);
  if (s.reads_hidden_in_fours) {
    const HiddenRows<R, kAtOnce> rows = {hidden, s.d_model};
    normalise<kInThreads, Rows>(rows, s.norm_weight, sizes, x, sums);
  } else {
    const HiddenRows<R, 1> rows = {hidden, s.d_model};
    normalise<kInThreads, Rows>(rows, s.norm_weight, sizes, x, sums);
  }
}

template <typename T, int Rows, bool IsVector>
__global__ void __launch_bounds__(kInThreads) project_in(const ProjectIn s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const InShared at(s, Rows, sizeof(T));
  T* x = reinterpret_cast<T*>(shared + at.x);
  float* partial = reinterpret_cast<float*>(shared + at.partial);
  float* window = reinterpret_cast<float*>(shared + at.window);  // (batch, span, columns)
  float* taps = reinterpret_cast<float*>(shared + at.taps);      // (columns, d_conv + 1)
  float* sums = reinterpret_cast<float*>(shared + at.sums);
  const int d_model = s.d_model, length = s.length, batch = s.batch;
  const int d_conv = s.d_conv, history = d_conv - 1, span = history + length;
  const int first = blockIdx.x * kInColumns;
  const int first_channel = first - s.conv_first;  // that of the block's first column
  const auto is_channel = [&](int c) {
    return first_channel + c >= 0 && first_channel + c < s.conv_columns;
  };

  InProduct<T, Rows, IsVector> product({s.weight, d_model, s.columns}, first, 0, d_model, x,
                                       padded(d_model));
  product.start_weights();
  for (int i = threadIdx.x * kLine; i < d_model; i += kInThreads * kLine) {
    prefetch(s.norm_weight + i);
  }
  const bool has_convolution = first_channel < s.conv_columns && first_channel + kInColumns > 0;
  if (has_convolution) {
    for (int i = threadIdx.x; i < kInColumns * (d_conv + 1); i += kInThreads) {
      const int c = i / (d_conv + 1), tap = i % (d_conv + 1), channel = first_channel + c;
      if (is_channel(c)) {
        taps[i] = tap == d_conv ? s.conv_bias[channel] : s.conv_weight[channel * d_conv + tap];
      }
    }
  }
  let_next_kernel_start();
  wait_for_earlier_kernels();

  if (has_convolution) {
    const T* state = static_cast<const T*>(s.conv_state);
    for (int i = threadIdx.x; i < batch * kInColumns * history; i += kInThreads) {
      const int j = i % history, c = i / history % kInColumns, b = i / history / kInColumns;
      if (is_channel(c)) {
        const int64_t row = static_cast<int64_t>(b) * s.conv_columns + first_channel + c;
        window[(b * span + j) * kInColumns + c] = to_float(state[row * history + j]);
      }
    }
  }
  if (s.hidden_dtype == MAMBA_FP32) {
    normalise_hidden<float, T, Rows>(s, x, sums);
  } else {
    normalise_hidden<T, T, Rows>(s, x, sums);
  }
  product.finish(partial);

  T* out = static_cast<T*>(s.out);
  for (int i = threadIdx.x; i < s.rows * kInColumns; i += kInThreads) {
    const int r = i / kInColumns, c = i % kInColumns;
    const T value = from_float<T>(partial[i]);
    if (is_channel(c)) {
      const int b = r / length, t = r % length;
      window[(b * span + history + t) * kInColumns + c] = to_float(value);
    } else if (first + c < s.columns) {
      out[r * s.stride + first + c] = value;
    }
  }
  if (!has_convolution) return;
  __syncthreads();
  for (int i = threadIdx.x; i < s.rows * kInColumns; i += kInThreads) {
    const int r = i / kInColumns, c = i % kInColumns;
    if (!is_channel(c)) continue;
    const float* past = window + (r / length * span + r % length) * kInColumns + c;
    const float* tap = taps + c * (d_conv + 1);
    float sum = tap[d_conv];
    for (int j = 0; j < d_conv; ++j) sum = fmaf(tap[j], past[j * kInColumns], sum);
    out[r * s.stride + first + c] = from_float<T>(silu<T>(sum));
  }
  T* last_state = static_cast<T*>(s.last_conv_state);
  for (int i = threadIdx.x; i < batch * kInColumns * history; i += kInThreads) {
    const int j = i % history, c = i / history % kInColumns, b = i / history / kInColumns;
    if (!is_channel(c)) continue;
    const int64_t row = static_cast<int64_t>(b) * s.conv_columns + first_channel + c;
    const float value = window[(b * span + length + j) * kInColumns + c];
    last_state[row * history + j] = from_float<T>(value);
  }
}

template <typename T, int Rows, bool IsVector>
struct ProjectInKernel {
  static auto function() { return &project_in<T, Rows, IsVector>; }
};

}  // namespace step

template <typename T>
size_t project_in_shared_bytes(const ProjectIn& s) {
  const bool is_vector = step::has_vector_rows<T>(s.weight, s.columns);
  return step::InShared(s, step::compiled_rows(s.rows, is_vector), sizeof(T)).bytes;
}

template <typename T>
cudaError_t launch_project_in(ProjectIn s, cudaStream_t stream) {
  using namespace step;
  const int64_t hidden_bytes = s.hidden_dtype == MAMBA_FP32 ? 4 : sizeof(T);
  s.reads_hidden_in_fours = s.d_model % kAtOnce == 0 &&
                            reinterpret_cast<uintptr_t>(s.hidden) % (4 * hidden_bytes) == 0 &&
                            is_aligned<16>(s.norm_weight, 0, sizeof(float));
  const bool is_vector = has_vector_rows<T>(s.weight, s.columns);
  return launch(pick<ProjectInKernel, T>(s.rows, is_vector), blocks_for(s.columns, kInColumns),
                kInThreads, project_in_shared_bytes<T>(s), s, s.overlaps, stream);
}

}  // namespace mamba
