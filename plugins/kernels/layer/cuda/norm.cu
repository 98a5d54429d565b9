// A layer's first norm for any number of rows: a block takes a row.
#include "common/cuda/gpu.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"
#include "layer/cuda/step.cuh"

namespace mamba {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

template <typename R, typename T, int Width>
__global__ void __launch_bounds__(kThreads)
    norm_row(const R* hidden, const float* weight, int width, float epsilon, T* x) {
  let_next_kernel_start();
  wait_for_earlier_kernels();
  __shared__ float sums[kWarps];
  const R* row = hidden + static_cast<int64_t>(blockIdx.x) * width;
  T* result = x + static_cast<int64_t>(blockIdx.x) * width;
  float square = 0.f;
  for (int i = threadIdx.x * Width; i < width; i += kThreads * Width) {
    const Pack<R, Width> h = *reinterpret_cast<const Pack<R, Width>*>(row + i);
#pragma unroll
    for (int j = 0; j < Width; ++j) {
      const float value = to_float(h.values[j]);
      square = fmaf(value, value, square);
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    square += __shfl_xor_sync(0xffffffffu, square, offset);
  }
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = square;
  __syncthreads();
  float total = 0.f;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += sums[warp];
  const float scale = 1.f / sqrtf(total / width + epsilon);
  for (int i = threadIdx.x * Width; i < width; i += kThreads * Width) {
    const Pack<R, Width> h = *reinterpret_cast<const Pack<R, Width>*>(row + i);
    const Pack<float, Width> w = *reinterpret_cast<const Pack<float, Width>*>(weight + i);
    Pack<T, Width> y;
#pragma unroll
    for (int j = 0; j < Width; ++j) {
      y.values[j] = from_float<T>(to_float(h.values[j]) * scale * w.values[j]);
    }
    *reinterpret_cast<Pack<T, Width>*>(result + i) = y;
  }
}

template <typename R, typename T>
cudaError_t launch(const RowNorm& n, cudaStream_t stream) {
  const R* hidden = static_cast<const R*>(n.hidden);
  const int width = static_cast<int>(n.width);
  const unsigned rows = static_cast<unsigned>(n.rows);
  const bool in_fours = is_aligned<4 * sizeof(R)>(hidden, width, sizeof(R)) &&
                        is_aligned<16>(n.weight, width, sizeof(float)) && width % 4 == 0;
  const auto kernel = in_fours ? norm_row<R, T, 4> : norm_row<R, T, 1>;
  return launch_overlapping(kernel, dim3(rows), dim3(kThreads), 0, stream, current_gpu().major >= 9,
                            hidden, n.weight, width, n.epsilon, static_cast<T*>(n.x));
}

}  // namespace

cudaError_t launch_norm(const RowNorm& n, cudaStream_t stream) {
  return with_type(n.dtype, [&](auto* type) {
    using T = std::decay_t<decltype(*type)>;
    return n.hidden_dtype == MAMBA_FP32 ? launch<float, T>(n, stream) : launch<T, T>(n, stream);
  });
}

}  // namespace mamba
