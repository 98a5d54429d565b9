// A layer for a few rows (one token of a few sequences) in three or four kernels, for one dtype T.
//
//   project_in   x = norm(hidden); x and z halves of in_proj; convolution, SiLU, its state; of one
//                row shares of x_proj(u) too
//   project_x    else the shares, one for each part of the depth
//   step_state   dt, B and C from the shares; dt_proj, softplus; the scan's step, skip and gate
//   project_out  hidden + out_proj(y)
//
// On sm_90 and newer each is queued as a programmatic dependent: it starts while the one ahead
// still runs, brings its first weights in, and then waits.
#pragma once

#include "layer/cuda/gemv.cuh"
#include "layer/cuda/launch.cuh"
#include "layer/cuda/project_out.cuh"
#include "layer/cuda/ring_gemv.cuh"
#include "mamba_layer/cuda/layer.cuh"
#include "mamba_layer/cuda/states.cuh"
#include "mamba_layer/cuda/step_state_token.cuh"

namespace mamba {
namespace step {

constexpr int kXColumns = kXProjBlock.columns, kXThreads = kXProjBlock.threads;
constexpr int kStateColumns = kDtProjBlock.columns, kStateThreads = kDtProjBlock.threads;
constexpr int kSplitsAtOnce = 32;  // shares of x_proj that a thread asks for at once
static_assert(kStateThreads / kTeam == kStateColumns);

// Few rows: x rides along with the weights in registers.
template <typename T, int Rows>
constexpr bool kEarlyX = Rows * sizeof(T) <= kMaxEarlyBytes;
template <typename T, int Rows, bool IsVector>
using XProduct = RowProduct<T, T, kXColumns, kXThreads, Rows, IsVector, kEarlyX<T, Rows>>;
template <typename T, int Rows, bool IsVector>
using DeltaProduct = RowProduct<T, float, kStateColumns, kStateThreads, Rows, IsVector, kLateX>;

struct StateShared {
  size_t projected, partial, bytes;

  __host__ __device__ StateShared(const LayerStep& s, int rows) {
    projected = 0;
    partial = sizeof(float) * rows * padded(s.projected);
    bytes = partial + sizeof(float) * (kStateThreads / 32) * rows * kStateColumns;
  }
};

template <typename T, int Rows, bool IsVector>
__global__ void __launch_bounds__(kXThreads) project_x(const LayerStep s) {
  using Product = XProduct<T, Rows, IsVector>;
  __shared__ float partial[Product::kSharedFloats];
  const int d_inner = s.layer.d_inner, first = blockIdx.x * kXColumns;
  const int from = blockIdx.y * s.split_depth, to = min(from + s.split_depth, d_inner);
  Product product({s.layer.x_proj_weight, d_inner, s.projected}, first, from, to,
                  static_cast<const T*>(s.u), s.in_stride, s.rows);
  product.start_weights(partial);
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
  product.start_weights(partial);
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
    input[r] = to_float(u[r * s.in_stride + channel]);
    gate[r] = to_float(z[r * s.in_stride + channel]);
    if (r % length == 0) {
      first_states[r] = four_of(p.recurrent_state + r / length * sequence_stride + offset,
                                member * kTeamStates, d_state, in_fours);
    }
  }
  for (int i = threadIdx.x; i < Rows * width; i += kStateThreads) {
    const int r = i / width, n = i % width;
    float sum = 0.f;
    for (int first_split = 0; first_split < s.splits && r < rows; first_split += kSplitsAtOnce) {
      float shares[kSplitsAtOnce];
#pragma unroll
      for (int k = 0; k < kSplitsAtOnce; ++k) {
        const int split = first_split + k;
        shares[k] = split < s.splits ? s.parts[(split * rows + r) * width + n] : 0.f;
      }
#pragma unroll
      for (int k = 0; k < kSplitsAtOnce; ++k) sum += shares[k];
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
        h.values[i] = Decay(dt * kLog2e * A.values[i]).of(h.values[i], dt_u * B[n + i]);
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
    const float sum = team_sum(y[r]);
    if (is_inside && member == 0) {
      const float gated = (sum + skip * input[r]) * silu<T>(gate[r]);
      result[r * s.y_stride + channel] = from_float<T>(gated);
    }
  }
}

template <typename T, int Rows, bool IsVector>
struct ProjectX {
  static auto function() { return &project_x<T, Rows, IsVector>; }
};
template <typename T, int Rows, bool IsVector>
struct StepState {
  static auto function() { return &step_state<T, Rows, IsVector>; }
};

// project_x on tensor cores.
template <typename T, typename Product>
__global__ void __launch_bounds__(Product::kThreads)
    project_x_ring(const __grid_constant__ LayerStep s) {
  constexpr int kColumns = Product::kColumns, kThreads = Product::kThreads;
  extern __shared__ __align__(128) unsigned char shared[];
  T* x = reinterpret_cast<T*>(shared);
  const int x_stride = static_cast<int>(Product::x_stride(s.split_depth));
  float* partial = reinterpret_cast<float*>(x + Product::kRows * x_stride);
  const int split = blockIdx.y, first = blockIdx.x * kColumns, from = split * s.split_depth;
  const int depth = min(s.split_depth, static_cast<int>(s.layer.d_inner) - from);
  const T* weights = static_cast<const T*>(s.layer.x_proj_weight);
  Product product({weights + static_cast<int64_t>(from) * s.projected, depth, s.projected}, first,
                  0, depth, x, x_stride);
  product.start_weights(partial);
  let_next_kernel_start();
  wait_for_earlier_kernels();
  copy_rows<kThreads, Product::kRows>(static_cast<const T*>(s.u) + from, s.in_stride, s.rows, depth,
                                      x, x_stride);
  __syncthreads();
  product.finish(partial);
  for (int i = threadIdx.x; i < s.rows * kColumns; i += kThreads) {
    const int r = i / kColumns, column = first + i % kColumns;
    if (column < s.projected) s.parts[(split * s.rows + r) * s.projected + column] = partial[i];
  }
}

template <typename T>
cudaError_t launch_project_x(const LayerStep& s, cudaStream_t stream) {
  const bool is_vector = has_vector_rows<T>(s.layer.x_proj_weight, s.projected);
  const dim3 grid(blocks_for(s.projected, kXColumns), s.splits);
  if constexpr (sizeof(T) == 2) {
    if (is_vector && s.layer.d_inner % kXProjSplitDepth == 0 &&
        takes_ring<T>(static_cast<int>(s.layer.d_inner))) {
      return with_ring_product<T, kXColumns>(s.rows, [&](auto choice) {
        using Product = chosen<decltype(choice)>;
        const size_t bytes = Product::kRows * Product::x_stride(s.split_depth) * sizeof(T) +
                             Product::kSharedFloats * sizeof(float);
        return launch(&project_x_ring<T, Product>, grid, Product::kThreads, bytes, s, s.overlaps,
                      stream);
      });
    }
  }
  return launch(pick<ProjectX, T>(s.rows, is_vector), grid, kXThreads, 0, s, s.overlaps, stream);
}

template <typename T>
size_t state_shared_bytes(const LayerStep& s) {
  if (s.layer.length == 1) return StateTokenShared(s).bytes;
  const bool is_vector = has_vector_rows<T>(s.layer.dt_proj_weight, s.layer.d_inner);
  return StateShared(s, compiled_rows(s.rows, is_vector)).bytes;
}

}  // namespace step

template <typename T>
size_t step_shared_bytes(const LayerStep& s) {
  const size_t in = project_in_shared_bytes<T>(s.in), state = step::state_shared_bytes<T>(s);
  return in > state ? in : state;
}

template <typename T>
cudaError_t launch_step(const LayerStep& s, cudaStream_t stream) {
  using namespace step;
  const mamba_layer_params& p = s.layer;
  cudaError_t error = launch_project_in<T>(s.in, stream);
  if (error != cudaSuccess) return error;
  if (!s.in.next_weight) {
    error = launch_project_x<T>(s, stream);
    if (error != cudaSuccess) return error;
  }
  if (p.length == 1) {
    error = launch_state_token<T>(s, stream);
    if (error != cudaSuccess) return error;
    return launch_project_out<T>(s.out, stream);
  }
  error = launch(pick<StepState, T>(s.rows, has_vector_rows<T>(p.dt_proj_weight, p.d_inner)),
                 blocks_for(p.d_inner, kStateColumns), kStateThreads, state_shared_bytes<T>(s), s,
                 s.overlaps, stream);
  if (error != cudaSuccess) return error;
  return launch_project_out<T>(s.out, stream);
}

}  // namespace mamba
