// Sums over neighbouring lanes of a warp.
#pragma once

#include <cuda_runtime.h>

namespace mamba {

// The sum of a warp's numbers, for each of its lanes.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
  return value;
}

// Adds up each of `values` over the lanes; a lane has the sum of row lane * Rows / Lanes.
template <int Lanes, int Rows>
__device__ __forceinline__ float sum_over_lanes(float (&values)[Rows], int lane) {
  static_assert(Rows <= Lanes);
  int apart = Lanes / 2;
#pragma unroll
  for (int count = Rows; count > 1; count /= 2, apart /= 2) {
    const bool is_upper = lane & apart;
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const float kept = is_upper ? values[i + count / 2] : values[i];
      const float given = is_upper ? values[i] : values[i + count / 2];
      values[i] = kept + __shfl_xor_sync(~0u, given, apart);
    }
  }
#pragma unroll
  for (; apart > 0; apart /= 2) values[0] += __shfl_xor_sync(~0u, values[0], apart);
  return values[0];
}

}  // namespace mamba
