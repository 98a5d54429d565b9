// How the kernels of a layer's step are started, and for how many rows they are compiled.
#pragma once

#include "common/cuda/gpu.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/overlap.cuh"
#include "common/cuda/tuning.cuh"
#include "layer/cuda/step.cuh"

namespace mamba {
namespace step {

constexpr size_t kSharedUnasked = 48 * 1024;  // bytes that every kernel may have

inline unsigned blocks_for(int64_t columns, int per_block) {
  return static_cast<unsigned>((columns + per_block - 1) / per_block);
}

// Whether each of a product's blocks finds a multiprocessor of its own; and whether they leave a
// quarter of the multiprocessors to others.
inline bool has_own_multiprocessors(int columns, int of_block) {
  return blocks_for(columns, of_block) <= static_cast<unsigned>(current_gpu().multiprocessors);
}
inline bool leaves_multiprocessors(int columns, int of_block) {
  return blocks_for(columns, of_block) * 4u <= current_gpu().multiprocessors * 3u;
}

// overlaps: the kernel may start before the one ahead of it in the stream has ended.
template <typename Step>
cudaError_t launch(void (*kernel)(Step), dim3 grid, int threads, size_t shared, const Step& s,
                   bool overlaps, cudaStream_t stream) {
  if (shared > kSharedUnasked) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  return launch_overlapping(kernel, grid, dim3(threads), shared, stream, overlaps, s);
}

// The rows that the kernel for these rows was compiled for. Matrices that cannot be read in 16
// bytes take the widest.
constexpr int compiled_rows(int rows, bool is_vector) {
  if (!is_vector || rows > kSomeStepRows) return kMaxStepRows;
  return rows == 1 ? 1 : kSomeStepRows;
}

// That kernel, of a family: Kernel<T, rows, is_vector>::function().
template <template <typename, int, bool> class Kernel, typename T>
auto pick(int rows, bool is_vector) {
  if (!is_vector) return Kernel<T, kMaxStepRows, false>::function();
  if (rows == 1) return Kernel<T, 1, true>::function();
  if (rows <= kSomeStepRows) return Kernel<T, kSomeStepRows, true>::function();
  return Kernel<T, kMaxStepRows, true>::function();
}

template <typename T>
bool has_vector_rows(const void* weights, int64_t columns) {
  return is_aligned<16>(weights, columns, sizeof(T));
}

// Hands on a type as a value.
template <typename Type>
struct Choice {
  using type = Type;
};
template <typename Chosen>
using chosen = typename std::decay_t<Chosen>::type;

}  // namespace step
}  // namespace mamba
