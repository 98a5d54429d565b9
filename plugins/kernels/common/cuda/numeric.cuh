// Numbers of the CUDA kernels: loads and stores of T, exponentials, softplus and SiLU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace mamba {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Count numbers that lie side by side, moved as one access.
template <typename T, int Count>
struct alignas(sizeof(T) * Count) Pack {
  T values[Count];
};

template <typename T>
constexpr bool kIsWide = sizeof(T) == 4;

// 2^x to 2 ulp; results below the smallest normal number are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 0 for infinity.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log(1 + exp(x)). T is what x came from: for 16 bits the two fast instructions do, but for a small
// exp(x), which 1 + exp(x) would swallow.
template <typename T>
__device__ __forceinline__ float softplus(float x) {
  if constexpr (kIsWide<T>) {
    return x > 20.f ? x : log1pf(expf(x));
  } else {
    const float e = exp2_fast(x * kLog2e);
    const float series = e * (1.f - e * (0.5f - e * (1.f / 3.f)));
    const float plain = e < 0.015625f ? series : kLn2 * log2_fast(1.f + e);
    return x > 20.f ? x : plain;
  }
}

template <typename T>
__device__ __forceinline__ float silu(float x) {
  if constexpr (kIsWide<T>) {
    return x / (1.f + expf(-x));
  } else {
    return x * reciprocal_fast(1.f + exp2_fast(-x * kLog2e));
  }
}

// Whether rows that start at data and lie stride elements apart may be read Bytes at a time.
template <int Bytes>
inline bool is_aligned(const void* data, int64_t stride, size_t element) {
  return reinterpret_cast<uintptr_t>(data) % Bytes == 0 && stride * int64_t(element) % Bytes == 0;
}

// Runs body with a null pointer of the type of dtype: body picks a template by it.
template <typename Body>
auto with_type(int dtype, Body body) {
  if (dtype == 1) return body(static_cast<__half*>(nullptr));
  if (dtype == 2) return body(static_cast<__nv_bfloat16*>(nullptr));
  return body(static_cast<float*>(nullptr));
}

}  // namespace mamba
