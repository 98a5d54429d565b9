// A layer's first norm for any number of rows.
#include "common/cuda/norm_rows.cuh"
#include "layer/cuda/step.cuh"

namespace mamba {
namespace {

// What norm_rows reads and writes.
template <typename R, typename T>
struct HiddenRows {
  static constexpr int kWidth = 4;
  static constexpr bool kOneWeight = true;
  using Vector = norm::Words<sizeof(R) * kWidth>;
  struct Place {
    const R* hidden;
    T* x;
  };
  const R* hidden;
  const float* norm_weight;
  T* x;
  int width;
  float epsilon;
  bool reads_early;

  __device__ Place place(unsigned row) const {
    return {hidden + int64_t{row} * width, x + int64_t{row} * width};
  }
  __device__ Vector fetch(const Place& at, int i) const {
    return *reinterpret_cast<const Vector*>(at.hidden + i);
  }
  __device__ void values(const Vector& vector, float (&value)[kWidth]) const {
    norm::widen<R>(vector, value);
  }
  __device__ const float* weight(const Place&, int i) const { return norm_weight + i; }
  __device__ void store(const Place& at, int i, const Vector&, const float* normed) const {
    Pack<T, kWidth> y;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) y.values[j] = from_float<T>(normed[j]);
    *reinterpret_cast<Pack<T, kWidth>*>(at.x + i) = y;
  }
};

// Rows of any width and alignment, read twice: a block takes a row.
template <typename R, typename T>
__global__ void __launch_bounds__(norm::kMostThreads)
    norm_any(const R* hidden, const float* weight, int width, float epsilon, T* x) {
  __shared__ float sums[norm::kMostWarps];
  let_next_kernel_start();
  wait_for_earlier_kernels();
  const R* row = hidden + static_cast<int64_t>(blockIdx.x) * width;
  float square = 0.f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float value = to_float(row[i]);
    square = fmaf(value, value, square);
  }
  const float mean = norm::sum_of_row(square, sums) / static_cast<float>(width);
  const float scale = 1.f / sqrtf(mean + epsilon);
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    x[static_cast<int64_t>(blockIdx.x) * width + i] =
        from_float<T>(to_float(row[i]) * scale * weight[i]);
  }
}

template <typename R, typename T>
cudaError_t launch(const RowNorm& n, cudaStream_t stream) {
  constexpr int kWidth = HiddenRows<R, T>::kWidth;
  const R* hidden = static_cast<const R*>(n.hidden);
  T* x = static_cast<T*>(n.x);
  const int width = static_cast<int>(n.width);
  const bool is_wide = width % kWidth == 0 && width <= norm::widest_row(kWidth) &&
                       is_aligned<kWidth * sizeof(R)>(hidden, width, sizeof(R)) &&
                       is_aligned<kWidth * sizeof(T)>(x, width, sizeof(T)) &&
                       is_aligned<16>(n.weight, width, sizeof(float));
  if (is_wide) {
    const HiddenRows<R, T> rows = {hidden, n.weight, x, width, n.epsilon, n.reads_early};
    return norm::launch_norm_rows(rows, n.rows, stream);
  }
  const dim3 block(norm::block_for(n.width, kWidth).x);
  return launch_overlapping(norm_any<R, T>, dim3(static_cast<unsigned>(n.rows)), block, 0, stream,
                            current_gpu().major >= 9, hidden, n.weight, width, n.epsilon, x);
}

}  // namespace

cudaError_t launch_norm(const RowNorm& n, cudaStream_t stream) {
  return with_type(n.dtype, [&](auto* type) {
    using T = std::decay_t<decltype(*type)>;
    return n.hidden_dtype == MAMBA_FP32 ? launch<float, T>(n, stream) : launch<T, T>(n, stream);
  });
}

}  // namespace mamba
