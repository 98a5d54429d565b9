// Rows of a mamba_sequence.
#pragma once

#include "common/cuda/numeric.cuh"
#include "mamba_params.h"

namespace mamba {

template <typename T>
__device__ __forceinline__ const T* row(const mamba_sequence& sequence, int64_t batch,
                                        int64_t step) {
  return static_cast<const T*>(sequence.data) + batch * sequence.batch_stride +
         step * sequence.step_stride;
}

// Every row of the sequence can be read Bytes at a time, from channels that are a multiple of that.
template <int Bytes>
inline bool rows_aligned(const mamba_sequence& s, size_t element) {
  return is_aligned<Bytes>(s.data, s.batch_stride, element) &&
         is_aligned<Bytes>(s.data, s.step_stride, element);
}

}  // namespace mamba
