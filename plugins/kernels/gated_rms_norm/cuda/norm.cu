// The gated RMSNorm (arXiv:1910.07467, arXiv:2405.21060): a row is a step's group of channels, and
// y = norm(x silu(z)), or norm(x) silu(z) with the norm before the gate.
#include "common/cuda/gpu.cuh"
#include "common/cuda/kernels.cuh"
#include "common/cuda/norm_rows.cuh"
#include "common/cuda/sequence.cuh"
#include "common/sizes.h"

namespace mamba {
namespace {

// What norm_rows reads and writes. NormFirst: the norm is before the gate.
template <typename T, bool NormFirst>
struct GatedRows {
  static constexpr int kWidth = 16 / sizeof(T);
  static constexpr bool kOneWeight = false, reads_early = false;
  struct Vector {
    norm::Words<16> x, z;
  };
  struct Place {
    const T *x, *z;
    const float* weight;
    T* y;
  };
  mamba_gated_rms_norm_params p;
  int width;
  float epsilon;
  bool is_flat;  // a step lies as far from the one before whether or not a sequence ends between

  explicit GatedRows(const mamba_gated_rms_norm_params& params)
      : p(params), width(static_cast<int>(params.group_width)), epsilon(params.epsilon) {
    const auto flat = [this](const mamba_sequence& s) {
      return p.batch == 1 || s.batch_stride == p.length * s.step_stride;
    };
    is_flat = flat(p.x) && flat(p.z);
  }

  __device__ Place place(unsigned index) const {
    // A division takes some twenty instructions, and most models need none.
    unsigned step = index, batch = 0, group = 0;
    if (p.groups > 1) {
      step = index / static_cast<unsigned>(p.groups);
      group = index - step * static_cast<unsigned>(p.groups);
    }
    if (!is_flat) {
      batch = step / static_cast<unsigned>(p.length);
      step -= batch * static_cast<unsigned>(p.length);
    }
    const int first = static_cast<int>(group) * width;
    return {row<T>(p.x, batch, step) + first, row<T>(p.z, batch, step) + first, p.weight + first,
            static_cast<T*>(p.y) + int64_t{index} * width};
  }
  __device__ Vector fetch(const Place& at, int i) const {
    return {*reinterpret_cast<const norm::Words<16>*>(at.x + i),
            *reinterpret_cast<const norm::Words<16>*>(at.z + i)};
  }
  __device__ void values(const Vector& vector, float (&value)[kWidth]) const {
    norm::widen<T>(vector.x, value);
    if (NormFirst) return;
    float z[kWidth];
    norm::widen<T>(vector.z, z);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) value[j] *= silu<T>(z[j]);
  }
  __device__ const float* weight(const Place& at, int i) const { return at.weight + i; }
  __device__ void store(const Place& at, int i, const Vector& vector, const float* normed) const {
    float z[kWidth];
    norm::widen<T>(vector.z, z);
    Pack<T, kWidth> y;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      y.values[j] = from_float<T>(NormFirst ? normed[j] * silu<T>(z[j]) : normed[j]);
    }
    *reinterpret_cast<Pack<T, kWidth>*>(at.y + i) = y;
  }
};

// Rows of any width and alignment, read twice. blockDim is (threads of a row, rows).
template <typename T>
__global__ void gated_norm_any(const __grid_constant__ mamba_gated_rms_norm_params p) {
  __shared__ float sums[norm::kMostWarps];
  let_next_kernel_start();
  int64_t index = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool exists = index < p.batch * p.length * p.groups;
  if (!exists) index = 0;
  const int64_t group = index % p.groups, at = index / p.groups;
  wait_for_earlier_kernels();
  const T* x = row<T>(p.x, at / p.length, at % p.length) + group * p.group_width;
  const T* z = row<T>(p.z, at / p.length, at % p.length) + group * p.group_width;
  float square = 0.f;
  for (int64_t i = threadIdx.x; i < p.group_width; i += blockDim.x) {
    float value = to_float(x[i]);
    if (!p.norm_before_gate) value *= silu<T>(to_float(z[i]));
    square = fmaf(value, value, square);
  }
  const float mean = norm::sum_of_row(square, sums) / static_cast<float>(p.group_width);
  const float scale = 1.f / sqrtf(mean + p.epsilon);
  if (!exists) return;
  const float* weight = p.weight + group * p.group_width;
  T* y = static_cast<T*>(p.y) + index * p.group_width;
  for (int64_t i = threadIdx.x; i < p.group_width; i += blockDim.x) {
    // In the order of the definition: the gate before the norm, or behind it.
    const float value = to_float(x[i]), gate = silu<T>(to_float(z[i]));
    const float found =
        p.norm_before_gate ? value * scale * weight[i] * gate : value * gate * scale * weight[i];
    y[i] = from_float<T>(found);
  }
}

template <typename T>
cudaError_t launch(const mamba_gated_rms_norm_params& p, cudaStream_t stream) {
  constexpr int kW = GatedRows<T, false>::kWidth;
  const bool is_wide = p.group_width % kW == 0 && rows_aligned<16>(p.x, sizeof(T)) &&
                       rows_aligned<16>(p.z, sizeof(T)) && is_aligned<16>(p.y, 0, sizeof(T)) &&
                       is_aligned<16>(p.weight, 0, sizeof(float)) &&
                       p.group_width <= norm::widest_row(kW);
  const int64_t rows = product(p.batch, p.length, p.groups);
  if (is_wide) {
    return p.norm_before_gate ? norm::launch_norm_rows(GatedRows<T, true>(p), rows, stream)
                              : norm::launch_norm_rows(GatedRows<T, false>(p), rows, stream);
  }
  const dim3 block = norm::block_for(p.group_width, kW);
  const int64_t blocks = (rows - 1) / block.y + 1;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch_overlapping(gated_norm_any<T>, dim3(static_cast<unsigned>(blocks)), block, 0,
                            stream, current_gpu().major >= 9, p);
}

}  // namespace

cudaError_t launch_gated_norm(const mamba_gated_rms_norm_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    return launch<std::remove_pointer_t<decltype(type)>>(p, stream);
  });
}

}  // namespace mamba
