// A layer for a few rows (one token of a few sequences) in four kernels, for one dtype T.
//
//   project_in   x = norm(hidden); x and z halves of in_proj; convolution, SiLU, its state
//   project_x    shares of x_proj(u), one for each part of the depth
//   step_state   dt, B and C from the shares; dt_proj, softplus; the scan's step, skip and gate
//   project_out  hidden + out_proj(y)
//
// On sm_90 and newer each is queued as a programmatic dependent: it starts while the one ahead
// still runs, brings its first weights in, and then waits.
#pragma once

#include "mamba_layer/cuda/layer.cuh"
#include "mamba_layer/cuda/layer_gemv.cuh"

namespace mamba {
namespace step {

constexpr int kInColumns = kInProjBlock.columns, kInThreads = kInProjBlock.threads;
constexpr int kXColumns = kXProjBlock.columns, kXThreads = kXProjBlock.threads;
constexpr int kStateColumns = kDtProjBlock.columns, kStateThreads = kDtProjBlock.threads;
constexpr int kOutColumns = kOutProjBlock.columns, kOutThreads = kOutProjBlock.threads;
constexpr int kTeam = 4;          // threads that share a channel's states
constexpr int kTeamStates = 4;    // states that a thread takes at once
constexpr int kHiddenAtOnce = 4;  // numbers of hidden that a thread reads, where they are aligned
constexpr int kLine = 32;         // numbers of fp32 in a line of the L2 cache
constexpr size_t kSharedUnasked = 48 * 1024;  // bytes that every kernel may have
static_assert(kStateThreads / kTeam == kStateColumns);
static_assert(padded(1) % kGemvRun == 0);  // RowProduct asks it of rows of x

constexpr bool kLateX = false;  // RowProduct's EarlyX
template <typename T, int Rows, bool IsVector>
using InProduct = RowProduct<T, T, kInColumns, kInThreads, Rows, IsVector, kLateX>;
// Few rows: x rides along with the weights in registers.
template <typename T, int Rows>
constexpr bool kEarlyX = Rows * sizeof(T) <= kMaxEarlyBytes;
template <typename T, int Rows, bool IsVector>
using XProduct = RowProduct<T, T, kXColumns, kXThreads, Rows, IsVector, kEarlyX<T, Rows>>;
template <typename T, int Rows, bool IsVector>
using DeltaProduct = RowProduct<T, float, kStateColumns, kStateThreads, Rows, IsVector, kLateX>;
template <typename T, int Rows, bool IsVector>
using OutProduct = RowProduct<T, T, kOutColumns, kOutThreads, Rows, IsVector, kEarlyX<T, Rows>>;

// Parts of a block's shared memory, in bytes from its start.
struct InShared {
  size_t x, partial, window, taps, sums, bytes;

  __host__ __device__ InShared(const LayerStep& s, int rows, size_t element) {
    const int64_t span = s.layer.d_conv - 1 + s.layer.length;
    x = 0;
    partial = x + rows * padded(s.layer.d_model) * element;
    window = partial + sizeof(float) * (kInThreads / 32) * rows * kInColumns;
    taps = window + sizeof(float) * s.layer.batch * span * kInColumns;
    sums = taps + sizeof(float) * (s.layer.d_conv + 1) * kInColumns;  // the bias is the last tap
    bytes = sums + sizeof(float) * (kInThreads / 32) * rows;
  }
};

struct StateShared {
  size_t projected, partial, bytes;

  __host__ __device__ StateShared(const LayerStep& s, int rows) {
    projected = 0;
    partial = sizeof(float) * rows * padded(s.projected);
    bytes = partial + sizeof(float) * (kStateThreads / 32) * rows * kStateColumns;
  }
};

template <typename T, int Width>
__device__ __forceinline__ Pack<float, Width> widened(const T* data) {
  const Pack<T, Width> narrow = *reinterpret_cast<const Pack<T, Width>*>(data);
  Pack<float, Width> wide;
#pragma unroll
  for (int i = 0; i < Width; ++i) wide.values[i] = to_float(narrow.values[i]);
  return wide;
}

// x (Rows, padded d_model) = norm(hidden) in shared memory, zeros beyond what there is.
template <typename R, typename T, int Rows, int Width>
__device__ void normalise(const LayerStep& s, T* x, float* sums) {
  constexpr int kWarps = kInThreads / 32, kStep = kInThreads * Width;
  const int width = s.layer.d_model, x_stride = padded(s.layer.d_model);
  const R* hidden = static_cast<const R*>(s.layer.hidden);
  const int start = threadIdx.x * Width;
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    float square = 0.f;
    if (r < s.rows) {
#pragma unroll 4
      for (int i = start; i < width; i += kStep) {
        const Pack<float, Width> h = widened<R, Width>(hidden + r * width + i);
#pragma unroll
        for (int j = 0; j < Width; ++j) square = fmaf(h.values[j], h.values[j], square);
      }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      square += __shfl_xor_sync(0xffffffffu, square, offset);
    }
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32 * Rows + r] = square;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    float square = 0.f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) square += sums[warp * Rows + r];
    const float scale = 1.f / sqrtf(square / width + s.layer.epsilon);
#pragma unroll 4
    for (int i = start; i < width; i += kStep) {
      Pack<T, Width> result = {};
      if (r < s.rows) {
        const Pack<float, Width> h = widened<R, Width>(hidden + r * width + i);
        const Pack<float, Width> w = widened<float, Width>(s.layer.norm_weight + i);
#pragma unroll
        for (int j = 0; j < Width; ++j) {
          result.values[j] = from_float<T>(h.values[j] * scale * w.values[j]);
        }
      }
      *reinterpret_cast<Pack<T, Width>*>(x + r * x_stride + i) = result;
    }
    for (int i = width + threadIdx.x; i < x_stride; i += kInThreads) {
      x[r * x_stride + i] = from_float<T>(0.f);
    }
  }
  __syncthreads();
}

template <typename T, int Rows, bool IsVector>
__global__ void __launch_bounds__(kInThreads) project_in(const LayerStep s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const mamba_layer_params& p = s.layer;
  const InShared at(s, Rows, sizeof(T));
  T* x = reinterpret_cast<T*>(shared + at.x);
  float* partial = reinterpret_cast<float*>(shared + at.partial);
  float* window = reinterpret_cast<float*>(shared + at.window);  // (batch, span, columns)
  float* taps = reinterpret_cast<float*>(shared + at.taps);      // (columns, d_conv + 1)
  float* sums = reinterpret_cast<float*>(shared + at.sums);
  const int d_model = p.d_model, d_inner = p.d_inner, length = p.length, batch = p.batch;
  const int d_conv = p.d_conv, history = d_conv - 1, span = history + length;
  const int first = blockIdx.x * kInColumns;

  InProduct<T, Rows, IsVector> product({p.in_proj_weight, d_model, 2 * d_inner}, first, 0, d_model,
                                       x, padded(d_model));
  product.start_weights();
  for (int i = threadIdx.x * kLine; i < d_model; i += kInThreads * kLine) {
    prefetch(p.norm_weight + i);
  }
  const bool has_convolution = first < d_inner;  // else the gate's columns alone
  if (has_convolution) {
    for (int i = threadIdx.x; i < kInColumns * (d_conv + 1); i += kInThreads) {
      const int column = first + i / (d_conv + 1), tap = i % (d_conv + 1);
      if (column < d_inner) {
        taps[i] = tap == d_conv ? p.conv_bias[column] : p.conv_weight[column * d_conv + tap];
      }
    }
  }
  let_next_kernel_start();
  wait_for_earlier_kernels();

  if (has_convolution) {
    const T* state = static_cast<const T*>(p.conv_state);
    for (int i = threadIdx.x; i < batch * kInColumns * history; i += kInThreads) {
      const int j = i % history, c = i / history % kInColumns, b = i / history / kInColumns;
      if (first + c < d_inner) {
        const int64_t row = static_cast<int64_t>(b) * d_inner + first + c;
        window[(b * span + j) * kInColumns + c] = to_float(state[row * history + j]);
      }
    }
  }
  if (s.reads_hidden_in_fours) {
    if (p.hidden_dtype == MAMBA_FP32) {
      normalise<float, T, Rows, kHiddenAtOnce>(s, x, sums);
    } else {
      normalise<T, T, Rows, kHiddenAtOnce>(s, x, sums);
    }
  } else if (p.hidden_dtype == MAMBA_FP32) {
    normalise<float, T, Rows, 1>(s, x, sums);
  } else {
    normalise<T, T, Rows, 1>(s, x, sums);
  }
  product.finish(partial);

  T* z = static_cast<T*>(s.z);
  for (int i = threadIdx.x; i < s.rows * kInColumns; i += kInThreads) {
    const int r = i / kInColumns, c = i % kInColumns, column = first + c;
    const T value = from_float<T>(partial[i]);
    if (column < d_inner) {
      const int b = r / length, t = r % length;
      window[(b * span + history + t) * kInColumns + c] = to_float(value);
    } else if (column < 2 * d_inner) {
      z[r * s.stride + column - d_inner] = value;
    }
  }
  if (!has_convolution) return;
  __syncthreads();
  T* u = static_cast<T*>(s.u);
  for (int i = threadIdx.x; i < s.rows * kInColumns; i += kInThreads) {
    const int r = i / kInColumns, c = i % kInColumns;
    if (first + c >= d_inner) continue;
    const float* past = window + (r / length * span + r % length) * kInColumns + c;
    const float* tap = taps + c * (d_conv + 1);
    float sum = tap[d_conv];
    for (int j = 0; j < d_conv; ++j) sum = fmaf(tap[j], past[j * kInColumns], sum);
    u[r * s.stride + first + c] = from_float<T>(silu<T>(sum));
  }
  T* last_state = static_cast<T*>(p.last_conv_state);
  for (int i = threadIdx.x; i < batch * kInColumns * history; i += kInThreads) {
    const int j = i % history, c = i / history % kInColumns, b = i / history / kInColumns;
    if (first + c >= d_inner) continue;
    const int64_t row = static_cast<int64_t>(b) * d_inner + first + c;
    const float value = window[(b * span + length + j) * kInColumns + c];
    last_state[row * history + j] = from_float<T>(value);
  }
}

template <typename T, int Rows, bool IsVector>
__global__ void __launch_bounds__(kXThreads) project_x(const LayerStep s) {
  using Product = XProduct<T, Rows, IsVector>;
  __shared__ float partial[Product::kSharedFloats];
  const int d_inner = s.layer.d_inner, first = blockIdx.x * kXColumns;
  const int from = blockIdx.y * s.split_depth, to = min(from + s.split_depth, d_inner);
  Product product({s.layer.x_proj_weight, d_inner, s.projected}, first, from, to,
                  static_cast<const T*>(s.u), s.stride);
  product.start_weights();
  let_next_kernel_start();
  wait_for_earlier_kernels();
  product.start_x();
  product.finish(partial);
  for (int i = threadIdx.x; i < s.rows * kXColumns; i += kXThreads) {
    const int r = i / kXColumns, column = first + i % kXColumns;
    if (column < s.projected) {
      s.parts[(static_cast<int>(blockIdx.y) * s.rows + r) * s.projected + column] = partial[i];
    }
  }
}

// Numbers first to first + 3 of a row of `count`, zeros beyond its end.
__device__ __forceinline__ Pack<float, kTeamStates> four_of(const float* row, int first, int count,
                                                            bool is_vector) {
  Pack<float, kTeamStates> values;
  if (is_vector && first < count) {
    return *reinterpret_cast<const Pack<float, kTeamStates>*>(row + first);
  }
#pragma unroll
  for (int i = 0; i < kTeamStates; ++i) values.values[i] = first + i < count ? row[first + i] : 0.f;
  return values;
}

__device__ __forceinline__ void put_four(float* row, int first, int count, bool is_vector,
                                         const Pack<float, kTeamStates>& values) {
  if (is_vector && first < count) {
    *reinterpret_cast<Pack<float, kTeamStates>*>(row + first) = values;
    return;
  }
#pragma unroll
  for (int i = 0; i < kTeamStates; ++i) {
    if (first + i < count) row[first + i] = values.values[i];
  }
}

template <typename T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (kIsWide<T>) {
    return expf(x);
  } else {
    return exp2_fast(x * kLog2e);
  }
}

template <typename T, int Rows, bool IsVector>
__global__ void __launch_bounds__(kStateThreads) step_state(const LayerStep s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const mamba_layer_params& p = s.layer;
  const StateShared at(s, Rows);
  float* projected = reinterpret_cast<float*>(shared + at.projected);  // (rows, padded)
  float* partial = reinterpret_cast<float*>(shared + at.partial);
  const int d_inner = p.d_inner, d_state = p.d_state, rank = p.dt_rank, length = p.length;
  const int rows = s.rows, width = s.projected, stride = padded(s.projected);
  const bool in_fours = s.reads_states_in_fours;
  const int first = blockIdx.x * kStateColumns;
  const int member = threadIdx.x % kTeam, c = threadIdx.x / kTeam;
  const bool is_inside = first + c < d_inner;
  const int channel = is_inside ? first + c : d_inner - 1;  // a valid one to read; never written

  DeltaProduct<T, Rows, IsVector> product({p.dt_proj_weight, rank, d_inner}, first, 0, rank,
                                          projected, stride);
  product.start_weights();
  const float* A_row = p.A + static_cast<int64_t>(channel) * d_state;
  const Pack<float, kTeamStates> A_first = four_of(A_row, member * kTeamStates, d_state, in_fours);
  const float bias = p.dt_bias[channel], skip = p.D[channel];
  let_next_kernel_start();
  wait_for_earlier_kernels();

  // All that does not depend on the products, asked for at once.
  const int64_t sequence_stride = static_cast<int64_t>(d_inner) * d_state;
  const int64_t offset = static_cast<int64_t>(channel) * d_state;
  const T* u = static_cast<const T*>(s.u);
  const T* z = static_cast<const T*>(s.z);
  Pack<float, kTeamStates> first_states[Rows];
  float input[Rows], gate[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    if (r >= rows) break;
    input[r] = to_float(u[r * s.stride + channel]);
    gate[r] = to_float(z[r * s.stride + channel]);
    if (r % length == 0) {
      first_states[r] = four_of(p.recurrent_state + r / length * sequence_stride + offset,
                                member * kTeamStates, d_state, in_fours);
    }
  }
  for (int i = threadIdx.x; i < Rows * width; i += kStateThreads) {
    const int r = i / width, n = i % width;
    float sum = 0.f;
    if (r < rows) {
#pragma unroll 8
      for (int split = 0; split < s.splits; ++split) sum += s.parts[(split * rows + r) * width + n];
    }
    projected[r * stride + n] = sum;
  }
  __syncthreads();
  product.finish(partial);

  float y[Rows] = {};
  for (int n = member * kTeamStates; n < d_state; n += kTeam * kTeamStates) {
    const bool is_first = n == member * kTeamStates;
    const Pack<float, kTeamStates> A = is_first ? A_first : four_of(A_row, n, d_state, in_fours);
    Pack<float, kTeamStates> h = {};
    int t = 0, b = 0;
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      if (r >= rows) break;
      if (t == 0) {
        h = is_first
                ? first_states[r]
                : four_of(p.recurrent_state + b * sequence_stride + offset, n, d_state, in_fours);
      }
      const float dt = softplus<T>(partial[r * kStateColumns + c] + bias);
      const float dt_u = dt * input[r];
      const float* B = projected + r * stride + rank;
      const float* C = B + d_state;
#pragma unroll
      for (int i = 0; i < kTeamStates; ++i) {
        if (n + i >= d_state) break;
        h.values[i] = exponential<T>(dt * A.values[i]) * h.values[i] + dt_u * B[n + i];
        y[r] = fmaf(h.values[i], C[n + i], y[r]);
      }
      if (++t == length) {
        if (is_inside) {
          put_four(p.last_recurrent_state + b * sequence_stride + offset, n, d_state, in_fours, h);
        }
        t = 0;
        ++b;
      }
    }
  }
  T* result = static_cast<T*>(s.y);
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    if (r >= rows) break;
    float sum = y[r];
#pragma unroll
    for (int distance = 1; distance < kTeam; distance *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    if (is_inside && member == 0) {
      const float gated = (sum + skip * input[r]) * silu<T>(gate[r]);
      result[r * s.stride + channel] = from_float<T>(gated);
    }
  }
}

template <typename T, int Rows, bool IsVector>
__global__ void __launch_bounds__(kOutThreads) project_out(const LayerStep s) {
  using Product = OutProduct<T, Rows, IsVector>;
  static_assert(Rows * kOutColumns <= kOutThreads);
  __shared__ float partial[Product::kSharedFloats];
  const mamba_layer_params& p = s.layer;
  const int d_inner = p.d_inner, d_model = p.d_model, first = blockIdx.x * kOutColumns;
  Product product({p.out_proj_weight, d_inner, d_model}, first, 0, d_inner,
                  static_cast<const T*>(s.y), s.stride);
  product.start_weights();
  let_next_kernel_start();
  wait_for_earlier_kernels();
  product.start_x();
  const int r = threadIdx.x / kOutColumns, column = first + threadIdx.x % kOutColumns;
  const bool is_writer = r < s.rows && column < d_model;
  const int64_t at = static_cast<int64_t>(r) * d_model + column;
  const bool is_wide = p.hidden_dtype == MAMBA_FP32;
  float residual = 0.f;
  if (is_writer) {
    residual = is_wide ? static_cast<const float*>(p.hidden)[at]
                       : to_float(static_cast<const T*>(p.hidden)[at]);
  }
  product.finish(partial);
  if (!is_writer) return;
  const float sum = residual + partial[threadIdx.x];
  if (is_wide) {
    static_cast<float*>(p.hidden_out)[at] = sum;
  } else {
    static_cast<T*>(p.hidden_out)[at] = from_float<T>(sum);
  }
}

inline unsigned blocks_for(int64_t columns, int per_block) {
  return static_cast<unsigned>((columns + per_block - 1) / per_block);
}

// overlaps: the kernel may start before the one ahead of it in the stream has ended.
inline cudaError_t launch(void (*kernel)(LayerStep), dim3 grid, int threads, size_t shared,
                          const LayerStep& s, bool overlaps, cudaStream_t stream) {
  if (shared > kSharedUnasked) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  return launch_overlapping(kernel, grid, dim3(threads), shared, stream, overlaps, s);
}

// Picks the number of rows to compile for; matrices that cannot be read in 16 bytes take the
// widest.
template <template <typename, int, bool> class Kernel, typename T>
void (*pick(int rows, bool is_vector))(LayerStep) {
  if (!is_vector) return Kernel<T, kMaxStepRows, false>::function();
  if (rows == 1) return Kernel<T, 1, true>::function();
  if (rows <= kSomeStepRows) return Kernel<T, kSomeStepRows, true>::function();
  return Kernel<T, kMaxStepRows, true>::function();
}

constexpr int compiled_rows(int rows, bool is_vector) {
  if (!is_vector || rows > kSomeStepRows) return kMaxStepRows;
  return rows == 1 ? 1 : kSomeStepRows;
}

template <typename T, int Rows, bool IsVector>
struct ProjectIn {
  static auto function() { return &project_in<T, Rows, IsVector>; }
};
template <typename T, int Rows, bool IsVector>
struct ProjectX {
  static auto function() { return &project_x<T, Rows, IsVector>; }
};
template <typename T, int Rows, bool IsVector>
struct StepState {
  static auto function() { return &step_state<T, Rows, IsVector>; }
};
template <typename T, int Rows, bool IsVector>
struct ProjectOut {
  static auto function() { return &project_out<T, Rows, IsVector>; }
};

template <typename T>
bool has_vector_rows(const void* weights, int64_t columns) {
  return is_aligned<16>(weights, columns, sizeof(T));
}

template <typename T>
size_t in_shared_bytes(const LayerStep& s) {
  const bool is_vector = has_vector_rows<T>(s.layer.in_proj_weight, 2 * s.layer.d_inner);
  return InShared(s, compiled_rows(s.rows, is_vector), sizeof(T)).bytes;
}

template <typename T>
size_t state_shared_bytes(const LayerStep& s) {
  const bool is_vector = has_vector_rows<T>(s.layer.dt_proj_weight, s.layer.d_inner);
  return StateShared(s, compiled_rows(s.rows, is_vector)).bytes;
}

}  // namespace step

template <typename T>
size_t step_shared_bytes(const LayerStep& s) {
  const size_t in = step::in_shared_bytes<T>(s), state = step::state_shared_bytes<T>(s);
  return in > state ? in : state;
}

template <typename T>
cudaError_t launch_step(const LayerStep& s, cudaStream_t stream) {
  using namespace step;
  const mamba_layer_params& p = s.layer;
  // The first kernel follows work that is not ours, which may have written the weights.
  const bool starts_early = s.overlaps && p.constant_weights;
  cudaError_t error =
      launch(pick<ProjectIn, T>(s.rows, has_vector_rows<T>(p.in_proj_weight, 2 * p.d_inner)),
             blocks_for(2 * p.d_inner, kInColumns), kInThreads, in_shared_bytes<T>(s), s,
             starts_early, stream);
  if (error != cudaSuccess) return error;
  error = launch(pick<ProjectX, T>(s.rows, has_vector_rows<T>(p.x_proj_weight, s.projected)),
                 dim3(blocks_for(s.projected, kXColumns), s.splits), kXThreads, 0, s, s.overlaps,
                 stream);
  if (error != cudaSuccess) return error;
  error = launch(pick<StepState, T>(s.rows, has_vector_rows<T>(p.dt_proj_weight, p.d_inner)),
                 blocks_for(p.d_inner, kStateColumns), kStateThreads, state_shared_bytes<T>(s), s,
                 s.overlaps, stream);
  if (error != cudaSuccess) return error;
  return launch(pick<ProjectOut, T>(s.rows, has_vector_rows<T>(p.out_proj_weight, p.d_model)),
                blocks_for(p.d_model, kOutColumns), kOutThreads, 0, s, s.overlaps, stream);
}

}  // namespace mamba
