// The gated RMSNorm (arXiv:1910.07467, arXiv:2405.21060): a row is a step's group of channels, and
// y = norm(x silu(z)), or norm(x) silu(z) with the norm before the gate.
#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "common/cuda/kernels.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/sequence.cuh"
#include "common/sizes.h"

namespace mamba {
namespace {

constexpr int kWarp = 32, kMostWarps = 32;
constexpr int kFewestThreads = 128;  // of a block, which has several rows of a warp each
constexpr int kMostVectors = 4;      // of a thread

template <typename T>
constexpr int kWidth = 16 / sizeof(T);

struct Row {
  int64_t batch, step, group;
  bool exists;
};

// blockDim is (threads of a row, rows).
__device__ __forceinline__ Row row_of(const mamba_gated_rms_norm_params& p) {
  int64_t index = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  Row row;
  row.exists = index < p.batch * p.length * p.groups;
  if (!row.exists) index = 0;
  row.group = index % p.groups;
  row.step = index / p.groups % p.length;
  row.batch = index / p.groups / p.length;
  return row;
}

// 1 / sqrt(mean of squares + epsilon) of the row, to each of its threads.
__device__ __forceinline__ float scale_of_row(const mamba_gated_rms_norm_params& p, float square) {
#pragma unroll
  for (int apart = kWarp / 2; apart > 0; apart /= 2) square += __shfl_xor_sync(~0u, square, apart);
  if (blockDim.x > kWarp) {  // then the block has one row
    __shared__ float sums[kMostWarps];
    if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = square;
    __syncthreads();
    square = 0.f;
    for (int warp = 0; warp < blockDim.x / kWarp; ++warp) square += sums[warp];
  }
  return 1.f / sqrtf(square / static_cast<float>(p.group_width) + p.epsilon);
}

// The numbers of a row lie in the registers of its threads, Vectors times 16 bytes in each.
template <typename T, int Vectors>
__global__ void gated_norm(const __grid_constant__ mamba_gated_rms_norm_params p) {
  constexpr int kW = kWidth<T>;
  using Vector = Pack<T, kW>;
  let_next_kernel_start();
  const Row at = row_of(p);
  wait_for_earlier_kernels();
  const int width = static_cast<int>(p.group_width);
  const T* x = row<T>(p.x, at.batch, at.step) + at.group * width;
  const T* z = row<T>(p.z, at.batch, at.step) + at.group * width;
  Vector xs[Vectors], zs[Vectors];
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
    const int i = (v * blockDim.x + threadIdx.x) * kW;
    xs[v] = zs[v] = {};
    if (i < width) {
      xs[v] = *reinterpret_cast<const Vector*>(x + i);
      zs[v] = *reinterpret_cast<const Vector*>(z + i);
    }
  }
  float value[Vectors][kW], gate[Vectors][kW], square = 0.f;
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
#pragma unroll
    for (int j = 0; j < kW; ++j) {
      value[v][j] = to_float(xs[v].values[j]);
      gate[v][j] = silu<T>(to_float(zs[v].values[j]));
      if (!p.norm_before_gate) value[v][j] *= gate[v][j];
      square = fmaf(value[v][j], value[v][j], square);
    }
  }
  const float scale = scale_of_row(p, square);
  if (!at.exists) return;
  const float* weight = p.weight + at.group * width;
  T* y = static_cast<T*>(p.y) + ((at.batch * p.length + at.step) * p.groups + at.group) * width;
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
    const int i = (v * blockDim.x + threadIdx.x) * kW;
    if (i >= width) continue;
    Vector ys;
#pragma unroll
    for (int four = 0; four < kW; four += 4) {
      const float4 w = *reinterpret_cast<const float4*>(weight + i + four);
      const float ws[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float found = value[v][four + j] * scale * ws[j];
        if (p.norm_before_gate) found *= gate[v][four + j];
        ys.values[four + j] = from_float<T>(found);
      }
    }
    *reinterpret_cast<Vector*>(y + i) = ys;
  }
}

// Rows of any width and alignment, read twice.
template <typename T>
__global__ void gated_norm_any(const __grid_constant__ mamba_gated_rms_norm_params p) {
  let_next_kernel_start();
  const Row at = row_of(p);
  wait_for_earlier_kernels();
  const T* x = row<T>(p.x, at.batch, at.step) + at.group * p.group_width;
  const T* z = row<T>(p.z, at.batch, at.step) + at.group * p.group_width;
  float square = 0.f;
  for (int64_t i = threadIdx.x; i < p.group_width; i += blockDim.x) {
    float value = to_float(x[i]);
    if (!p.norm_before_gate) value *= silu<T>(to_float(z[i]));
    square = fmaf(value, value, square);
  }
  const float scale = scale_of_row(p, square);
  if (!at.exists) return;
  const float* weight = p.weight + at.group * p.group_width;
  T* y = static_cast<T*>(p.y) +
         ((at.batch * p.length + at.step) * p.groups + at.group) * p.group_width;
  for (int64_t i = threadIdx.x; i < p.group_width; i += blockDim.x) {
    // In the order of the definition: the gate before the norm, or behind it.
    const float value = to_float(x[i]), gate = silu<T>(to_float(z[i]));
    const float found =
        p.norm_before_gate ? value * scale * weight[i] * gate : value * gate * scale * weight[i];
    y[i] = from_float<T>(found);
  }
}

// Threads of a row whose threads take `width` numbers each, and rows of a block.
dim3 block_for(int64_t group_width, int64_t width) {
  const int64_t warps = (group_width + width * kWarp - 1) / (width * kWarp);
  const auto threads = static_cast<unsigned>(std::min<int64_t>(warps, kMostWarps) * kWarp);
  return dim3(threads, threads == kWarp ? kFewestThreads / kWarp : 1);
}

template <typename T>
cudaError_t launch(const mamba_gated_rms_norm_params& p, cudaStream_t stream) {
  constexpr int64_t kW = kWidth<T>;
  const bool is_wide = p.group_width % kW == 0 && rows_aligned<16>(p.x, sizeof(T)) &&
                       rows_aligned<16>(p.z, sizeof(T)) && is_aligned<16>(p.y, 0, sizeof(T)) &&
                       is_aligned<16>(p.weight, 0, sizeof(float)) &&
                       p.group_width <= kW * kMostVectors * kMostWarps * kWarp;
  auto kernel = gated_norm_any<T>;
  dim3 block = block_for(p.group_width, kW);
  if (is_wide) {
    // A row of many numbers gives its threads more of them, until they are few enough.
    constexpr int64_t kFull = kW * kFewestThreads * 2;
    const int64_t vectors = p.group_width <= kFull       ? 1
                            : p.group_width <= 2 * kFull ? 2
                                                         : kMostVectors;
    kernel = vectors == 1   ? gated_norm<T, 1>
             : vectors == 2 ? gated_norm<T, 2>
                            : gated_norm<T, kMostVectors>;
    block = block_for(p.group_width, kW * vectors);
  }
  const int64_t rows = product(p.batch, p.length, p.groups);
  const int64_t blocks = (rows - 1) / block.y + 1;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch_overlapping(kernel, dim3(static_cast<unsigned>(blocks)), block, 0, stream,
                            current_gpu().major >= 9, p);
}

}  // namespace

cudaError_t launch_gated_norm(const mamba_gated_rms_norm_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    return launch<std::remove_pointer_t<decltype(type)>>(p, stream);
  });
}

}  // namespace mamba
