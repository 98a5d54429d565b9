// Tensor cores of sm_80 and later: products of 16-bit tiles that a warp holds in registers, and how
// tiles get there. On older architectures everything here compiles to nothing.
//
// A fragment is what each lane holds of a tile (PTX ISA, mma.m16n8k16): of the left factor (16, 16)
// four registers, of the right factor (16, 8) two, of the product (16, 8) four fp32 numbers:
// (row, column) = (lane / 4, lane % 4 * 2 + {0, 1}), then the same 8 rows below.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/cuda/numeric.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define MAMBA_HAVE_MMA 1
#endif

namespace mamba {

// Two numbers of 16 bits; `low` has the lower address.
template <typename T>
__device__ __forceinline__ uint32_t pack_two(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_two<__half>(float low, float high) {
  const __half2 two = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&two);
}
template <>
__device__ __forceinline__ uint32_t pack_two<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&two);
}

template <typename T>
__device__ __forceinline__ float2 unpack_two(uint32_t two);
template <>
__device__ __forceinline__ float2 unpack_two<__half>(uint32_t two) {
  return __half22float2(*reinterpret_cast<const __half2*>(&two));
}
template <>
__device__ __forceinline__ float2 unpack_two<__nv_bfloat16>(uint32_t two) {
  return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

// sum += left right.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&left)[4],
                                             uint32_t right0, uint32_t right1) {
#ifdef MAMBA_HAVE_MMA
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
  }
#endif
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four tiles of 8 by 8 numbers of 16 bits: lane i gives the address, in shared memory, of row i % 8
// of tile i / 8, and gets of each tile the pair (row, column) = (lane / 4, lane % 4 * 2 + {0, 1}).
__device__ __forceinline__ void load_tiles(uint32_t row, uint32_t (&tiles)[4]) {
#ifdef MAMBA_HAVE_MMA
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(row)
               : "memory");
#endif
}

// The same of transposed tiles: the pair is (column, row).
__device__ __forceinline__ void load_tiles_transposed(uint32_t row, uint32_t (&tiles)[4]) {
#ifdef MAMBA_HAVE_MMA
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(row)
               : "memory");
#endif
}

// A tile of 8 by 8 numbers of 16 bits, of which each lane has a pair as above, transposed.
__device__ __forceinline__ uint32_t transposed(uint32_t pair) {
#ifdef MAMBA_HAVE_MMA
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(pair));
#endif
  return pair;
}

// Queues a copy of 16 bytes to shared memory, of zeros where nothing exists there.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool exists) {
#ifdef MAMBA_HAVE_MMA
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(exists ? 16 : 0)
               : "memory");
#endif
}
// Ends a group of this thread's copies.
__device__ __forceinline__ void commit_copies() {
#ifdef MAMBA_HAVE_MMA
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits for this thread's groups but the last Count.
template <int Count>
__device__ __forceinline__ void wait_for_copies_but() {
#ifdef MAMBA_HAVE_MMA
  asm volatile("cp.async.wait_group %0;" ::"n"(Count) : "memory");
#endif
}
// Waits for this thread's copies.
__device__ __forceinline__ void wait_for_copies() {
#ifdef MAMBA_HAVE_MMA
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace mamba
