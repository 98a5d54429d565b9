// Pairs of numbers of 16 bits, as memory and the tensor cores have them.
#pragma once

#include "common/cuda/numeric.cuh"

namespace mamba {
namespace hopper {

// Two numbers of T in 32 bits, the first in the lower half.
template <typename T>
struct Pair;

template <>
struct Pair<__nv_bfloat16> {
  static __device__ __forceinline__ uint32_t of(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
  }
  static __device__ __forceinline__ float2 floats(uint32_t pair) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u)};
  }
};

template <>
struct Pair<__half> {
  static __device__ __forceinline__ uint32_t of(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
  }
  static __device__ __forceinline__ float2 floats(uint32_t pair) {
    return __half22float2(reinterpret_cast<const __half2&>(pair));
  }
};

}  // namespace hopper
}  // namespace mamba
