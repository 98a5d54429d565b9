// The first kernel of a layer's step: norm, in_proj, and the convolution over some of its columns.
// Of several steps a sequence; project_in_token.cuh has that of one.
#pragma once

#include "layer/cuda/gemv.cuh"
#include "layer/cuda/launch.cuh"
#include "layer/cuda/normalise.cuh"
#include "layer/cuda/packed_gemv.cuh"
#include "layer/cuda/project_in_token.cuh"
#include "layer/cuda/ring_gemv.cuh"

namespace mamba {
namespace step {

constexpr int kStateLoads = 6;  // numbers of the convolution's state that a thread reads at once

template <typename T, int Rows, bool IsVector>
using InProduct =
    RowProduct<T, T, kInProjBlock.columns, kInProjBlock.threads, Rows, IsVector, kLateX>;

// Calls body with the Choice of the product for these rows and this matrix.
template <typename T, typename Body>
auto with_in_product(const ProjectIn& s, Body body) {
  if (s.codes.bits) {
    return with_packed_product<T, PackedPlace::kFirst>(s.codes, s.rows, s.d_model, s.columns, body);
  }
  const bool is_vector = has_vector_rows<T>(s.weight, s.columns);
  if (!is_vector) return body(Choice<InProduct<T, kMaxStepRows, false>>());
  if constexpr (sizeof(T) == 2) {
    if (is_token(s) && takes_ring<T>(s.d_model)) {
      if (s.rows > 1) return with_ring_product<T, kSomeRowsInColumns>(s.rows, body);
      return with_ring_in_product<T>(s.columns, body);
    }
  }
  if (s.rows == 1) return body(Choice<InProduct<T, 1, true>>());
  if (s.rows <= kSomeStepRows) return body(Choice<InProduct<T, kSomeStepRows, true>>());
  return body(Choice<InProduct<T, kMaxStepRows, true>>());
}

// Parts of a block's shared memory, in bytes from its start.
template <typename Product>
struct InShared {
  size_t x, norm_weight, partial, window, taps, bytes;

  __host__ __device__ InShared(const ProjectIn& s, size_t element) {
    const int64_t span = s.d_conv - 1 + s.length;
    x = 0;
    norm_weight = x + Product::kRows * Product::x_stride(s.d_model) * element;
    partial = norm_weight + sizeof(float) * padded(s.d_model);
    window = partial + sizeof(float) * Product::kSharedFloats;
    taps = window + sizeof(float) * s.batch * span * Product::kColumns;
    // The bias is the last tap.
    bytes = taps + sizeof(float) * (s.d_conv + 1) * Product::kColumns;
  }
};

template <typename Product, typename R, typename T>
__device__ void normalise_hidden(const ProjectIn& s, const float* weight, T* x) {
  constexpr int kThreads = Product::kThreads, kRows = Product::kRows;
  constexpr int kPending = Product::kPendingCopies;
  const NormSizes sizes = {s.rows, s.d_model, 1, static_cast<int>(Product::x_stride(s.d_model)),
                           s.epsilon};
  const R* hidden = static_cast<const R*>(s.hidden);
  if (s.reads_hidden_in_fours) {
    const HiddenRows<R, kAtOnce> rows = {hidden, s.d_model};
    normalise_by_warps<kThreads, kRows, kPending>(rows, weight, sizes, x);
  } else {
    const HiddenRows<R, 1> rows = {hidden, s.d_model};
    normalise_by_warps<kThreads, kRows, kPending>(rows, weight, sizes, x);
  }
}

template <typename T, typename Product>
__global__ void __launch_bounds__(Product::kThreads) project_in(const ProjectIn s) {
  constexpr int kColumns = Product::kColumns, kThreads = Product::kThreads;
  extern __shared__ __align__(128) unsigned char shared[];
  const InShared<Product> at(s, sizeof(T));
  T* x = reinterpret_cast<T*>(shared + at.x);
  float* norm_weight = reinterpret_cast<float*>(shared + at.norm_weight);
  float* partial = reinterpret_cast<float*>(shared + at.partial);
  float* window = reinterpret_cast<float*>(shared + at.window);  // (batch, span, columns)
  float* taps = reinterpret_cast<float*>(shared + at.taps);      // (columns, d_conv + 1)
  const int d_model = s.d_model, length = s.length, batch = s.batch;
  const int d_conv = s.d_conv, history = d_conv - 1, span = history + length;
  const int first = blockIdx.x * kColumns;
  const int first_channel = first - s.conv_first;  // that of the block's first column
  const auto is_channel = [&](int c) {
    return first_channel + c >= 0 && first_channel + c < s.conv_columns;
  };

  Product product({s.weight, d_model, s.columns, s.codes}, first, 0, d_model, x,
                  static_cast<int>(Product::x_stride(d_model)));
  start_norm_weight<kThreads>(s.norm_weight, d_model, s.reads_hidden_in_fours, norm_weight);
  product.start_weights(partial);
  let_next_kernel_start();
  const bool has_convolution = first_channel < s.conv_columns && first_channel + kColumns > 0;
  if (has_convolution) {
    for (int i = threadIdx.x; i < kColumns * (d_conv + 1); i += kThreads) {
      const int c = i / (d_conv + 1), tap = i % (d_conv + 1), channel = first_channel + c;
      if (is_channel(c)) {
        taps[i] = tap == d_conv ? s.conv_bias[channel] : s.conv_weight[channel * d_conv + tap];
      }
    }
  }
  wait_for_earlier_kernels();

  // The convolution's state, kStateLoads numbers of a thread at a time: the first are asked for
  // ahead of the norm.
  const int states = has_convolution ? batch * kColumns * history : 0;
  float state[kStateLoads];
  const auto load_states = [&](int start) {
#pragma unroll
    for (int load = 0; load < kStateLoads; ++load) {
      const int i = start + load * kThreads;
      const int j = i % history, c = i / history % kColumns, b = i / history / kColumns;
      state[load] = 0.f;
      if (i < states && is_channel(c)) {
        const int64_t row = static_cast<int64_t>(b) * s.conv_columns + first_channel + c;
        state[load] = to_float(static_cast<const T*>(s.conv_state)[row * history + j]);
      }
    }
  };
  const auto keep_states = [&](int start) {
#pragma unroll
    for (int load = 0; load < kStateLoads; ++load) {
      const int i = start + load * kThreads;
      const int j = i % history, c = i / history % kColumns, b = i / history / kColumns;
      if (i < states) window[(b * span + j) * kColumns + c] = state[load];
    }
  };
  if (states > 0) load_states(threadIdx.x);
  if (s.hidden_dtype == MAMBA_FP32) {
    normalise_hidden<Product, float>(s, norm_weight, x);
  } else {
    normalise_hidden<Product, T>(s, norm_weight, x);
  }
  if (states > 0) keep_states(threadIdx.x);
  for (int i = threadIdx.x + kThreads * kStateLoads; i < states; i += kThreads * kStateLoads) {
    load_states(i);
    keep_states(i);
  }
  product.finish(partial);

  T* out = static_cast<T*>(s.out);
  for (int i = threadIdx.x; i < s.rows * kColumns; i += kThreads) {
    const int r = i / kColumns, c = i % kColumns;
    const T value = from_float<T>(partial[i]);
    if (is_channel(c)) {
      const int b = r / length, t = r % length;
      window[(b * span + history + t) * kColumns + c] = to_float(value);
    } else if (first + c < s.columns) {
      out[r * s.stride + first + c] = value;
    }
  }
  if (!has_convolution) return;
  __syncthreads();
  for (int i = threadIdx.x; i < s.rows * kColumns; i += kThreads) {
    const int r = i / kColumns, c = i % kColumns;
    if (!is_channel(c)) continue;
    const float* past = window + (r / length * span + r % length) * kColumns + c;
    const float* tap = taps + c * (d_conv + 1);
    float sum = tap[d_conv];
    for (int j = 0; j < d_conv; ++j) sum = fmaf(tap[j], past[j * kColumns], sum);
    const T u = from_float<T>(silu<T>(sum));
    out[r * s.stride + first + c] = u;
  }
  T* last_state = static_cast<T*>(s.last_conv_state);
  for (int i = threadIdx.x; i < batch * kColumns * history; i += kThreads) {
    const int j = i % history, c = i / history % kColumns, b = i / history / kColumns;
    if (!is_channel(c)) continue;
    const int64_t row = static_cast<int64_t>(b) * s.conv_columns + first_channel + c;
    const float value = window[(b * span + length + j) * kColumns + c];
    last_state[row * history + j] = from_float<T>(value);
  }
}

// Calls body with the kernel for s and the shared memory that it asks for.
template <typename T, typename Body>
auto with_in_kernel(const ProjectIn& s, Body body) {
  return with_in_product<T>(s, [&](auto choice) {
    using Product = chosen<decltype(choice)>;
    if constexpr (Product::kRows > 1) {
      if (!is_token(s)) {
        return body(choice, &project_in<T, Product>, InShared<Product>(s, sizeof(T)).bytes);
      }
    }
    const size_t bytes = TokenShared<T, Product>(s).bytes;
    if constexpr (Product::kRows == 1) {
      if (is_usual(s)) return body(choice, &project_in_token<T, Product, true>, bytes);
    }
    return body(choice, &project_in_token<T, Product, false>, bytes);
  });
}

}  // namespace step

template <typename T>
size_t project_in_shared_bytes(const ProjectIn& s) {
  return step::with_in_kernel<T>(s, [](auto, auto, size_t bytes) { return bytes; });
}

template <typename T>
int next_share_channels(const ProjectIn& s, const void* weight, int columns) {
  constexpr int kWidth = 16 / sizeof(T);
  if (s.rows != 1 || (!s.codes.bits && !step::has_vector_rows<T>(s.weight, s.columns)) ||
      columns % kWidth != 0 || !step::has_vector_rows<T>(weight, columns)) {
    return 0;
  }
  const int most = s.codes.bits ? kMostPackedShares : kMostNextShares;
  return step::with_in_product<T>(s, [&](auto choice) {
    using Product = step::chosen<decltype(choice)>;
    constexpr int kColumns = Product::kColumns;
    ProjectIn with_share = s;
    with_share.next_weight = weight;
    with_share.next_columns = columns;
    const bool fits = s.conv_first % kColumns == 0 && s.conv_columns % kColumns == 0 &&
                      s.conv_columns / kColumns <= most && columns / kWidth <= Product::kThreads &&
                      step::TokenShared<T, Product>(with_share).bytes <=
                          static_cast<size_t>(current_gpu().shared_bytes);
    return fits ? kColumns : 0;
  });
}

template <typename T>
cudaError_t launch_project_in(ProjectIn s, cudaStream_t stream) {
  using namespace step;
  const int64_t hidden_bytes = s.hidden_dtype == MAMBA_FP32 ? 4 : sizeof(T);
  s.reads_hidden_in_fours = s.d_model % kAtOnce == 0 &&
                            reinterpret_cast<uintptr_t>(s.hidden) % (4 * hidden_bytes) == 0 &&
                            is_aligned<16>(s.norm_weight, 0, sizeof(float));
  return with_in_kernel<T>(s, [&](auto choice, auto kernel, size_t bytes) {
    using Product = chosen<decltype(choice)>;
    return launch(kernel, blocks_for(s.columns, Product::kColumns), Product::kThreads, bytes, s,
                  s.overlaps, stream);
  });
}

}  // namespace mamba
