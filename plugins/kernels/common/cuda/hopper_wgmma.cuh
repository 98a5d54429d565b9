// Products of a warpgroup (wgmma, sm_90a): D (64 x N, fp32, in registers) plus A (64 x 16) times B
// (16 x N), numbers of 16 bits. B and, for multiply_tiles, A lie in shared memory as tiles of rows
// of 128 bytes in the 128-byte swizzle that TMA writes. Reference: the PTX ISA, section 9.7.15.
//
// Fragments. Of D, a thread's d[4 j] and d[4 j + 1] are of row r, columns 8 j + c and 8 j + c + 1,
// d[4 j + 2] and d[4 j + 3] of row r + 8, with r = 16 (warp of the warpgroup) + lane / 4 and
// c = 2 (lane % 4). Of A, four registers have the same places for j = 0 and 1, so that D packed to
// 16 bits is A of a next product.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace mamba {
namespace hopper {

// --- Descriptors of tiles ------------------------------------------------------------------------
//
// The lower word holds the address and the distance of two columns of tiles, the upper word the
// distance of two groups of 8 rows (1024 bytes) and the swizzle. The lower word counts 16 bytes:
// a step of 16 columns is kColumnStep of it, one of 16 rows kRowStep, one tile kTileStep.

constexpr int kTileBytes = 64 * 128;
constexpr uint32_t kColumnStep = 2, kRowStep = 16 * 128 / 16, kTileStep = kTileBytes / 16;

// k runs along a row.
__device__ __forceinline__ uint32_t along_rows(uint32_t tile) {
  return ((tile & 0x3FFFF) >> 4) | (1u << 16);
}
// k runs down the rows; columns from 64 on are in the next tile.
__device__ __forceinline__ uint32_t down_rows(uint32_t tile) {
  return ((tile & 0x3FFFF) >> 4) | (kTileStep << 16);
}
__device__ __forceinline__ uint64_t descriptor(uint32_t lower) {
  uint64_t value;
  asm("mov.b64 %0, {%1, %2};" : "=l"(value) : "r"(lower), "r"((1024u >> 4) | (1u << 30)));
  return value;
}

// --- Order ---------------------------------------------------------------------------------------

// Before the first product that reads registers which other instructions wrote.
__device__ __forceinline__ void products_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most Count committed groups of products are still running.
template <int Count>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Count) : "memory");
}
// The compiler does not know that products run on after they were issued: no use of d moves
// across this.
template <int Count>
__device__ __forceinline__ void pin(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// --- Products ------------------------------------------------------------------------------------

// clang-format off
#define MAMBA_ACCUMULATORS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MAMBA_OPERANDS_32 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
  "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), \
  "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), \
  "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
  "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define MAMBA_ACCUMULATORS_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
  "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MAMBA_OPERANDS_64 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
  "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), \
  "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), \
  "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
  "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), \
  "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), \
  "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), \
  "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
  "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), \
  "+f"(d[63])
// Operands are named by their number; where add is 0, D counts as 0.
#define MAMBA_WGMMA_TILES(Shape, Type, D, Operands, A, B, Add, Transposed) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %" #Add ", 0;\n" \
               "wgmma.mma_async.sync.aligned." Shape ".f32." Type "." Type " {" D "}, %" #A ", %" #B ", p, 1, 1, 0, " #Transposed ";}\n" \
               : Operands : "l"(a), "l"(b), "r"(add))
#define MAMBA_WGMMA_FRAGMENT(Shape, Type, D, Operands, A0, A1, A2, A3, B, Add, Transposed) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %" #Add ", 0;\n" \
               "wgmma.mma_async.sync.aligned." Shape ".f32." Type "." Type \
               " {" D "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, " #Transposed ";}\n" \
               : Operands : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))
// clang-format on

// A and B are tiles; k runs along the rows of both.
template <typename T>
__device__ __forceinline__ void multiply_tiles(float (&d)[32], uint64_t a, uint64_t b, int add) {
  if constexpr (std::is_same<T, __half>::value) {
    MAMBA_WGMMA_TILES("m64n64k16", "f16", MAMBA_ACCUMULATORS_32, MAMBA_OPERANDS_32, 32, 33, 34, 0);
  } else {
    MAMBA_WGMMA_TILES("m64n64k16", "bf16", MAMBA_ACCUMULATORS_32, MAMBA_OPERANDS_32, 32, 33, 34, 0);
  }
}
// A and B are tiles; k runs along the rows of A, and down those of B.
template <typename T>
__device__ __forceinline__ void multiply_tile_down_rows(float (&d)[32], uint64_t a, uint64_t b,
                                                        int add) {
  if constexpr (std::is_same<T, __half>::value) {
    MAMBA_WGMMA_TILES("m64n64k16", "f16", MAMBA_ACCUMULATORS_32, MAMBA_OPERANDS_32, 32, 33, 34, 1);
  } else {
    MAMBA_WGMMA_TILES("m64n64k16", "bf16", MAMBA_ACCUMULATORS_32, MAMBA_OPERANDS_32, 32, 33, 34, 1);
  }
}
template <typename T>
__device__ __forceinline__ void multiply_tile_down_rows(float (&d)[64], uint64_t a, uint64_t b,
                                                        int add) {
  if constexpr (std::is_same<T, __half>::value) {
    MAMBA_WGMMA_TILES("m64n128k16", "f16", MAMBA_ACCUMULATORS_64, MAMBA_OPERANDS_64, 64, 65, 66, 1);
  } else {
    MAMBA_WGMMA_TILES("m64n128k16", "bf16", MAMBA_ACCUMULATORS_64, MAMBA_OPERANDS_64, 64, 65, 66,
                      1);
  }
}
// A is a fragment in registers; k runs along the rows of B.
template <typename T>
__device__ __forceinline__ void multiply_along_rows(float (&d)[32], const uint32_t* a, uint64_t b,
                                                    int add) {
  if constexpr (std::is_same<T, __half>::value) {
    MAMBA_WGMMA_FRAGMENT("m64n64k16", "f16", MAMBA_ACCUMULATORS_32, MAMBA_OPERANDS_32, 32, 33, 34,
                         35, 36, 37, 0);
  } else {
    MAMBA_WGMMA_FRAGMENT("m64n64k16", "bf16", MAMBA_ACCUMULATORS_32, MAMBA_OPERANDS_32, 32, 33, 34,
                         35, 36, 37, 0);
  }
}
// A is a fragment in registers; k runs down the rows of B.
template <typename T>
__device__ __forceinline__ void multiply_down_rows(float (&d)[32], const uint32_t* a, uint64_t b,
                                                   int add) {
  if constexpr (std::is_same<T, __half>::value) {
    MAMBA_WGMMA_FRAGMENT("m64n64k16", "f16", MAMBA_ACCUMULATORS_32, MAMBA_OPERANDS_32, 32, 33, 34,
                         35, 36, 37, 1);
  } else {
    MAMBA_WGMMA_FRAGMENT("m64n64k16", "bf16", MAMBA_ACCUMULATORS_32, MAMBA_OPERANDS_32, 32, 33, 34,
                         35, 36, 37, 1);
  }
}

template <typename T>
__device__ __forceinline__ void multiply_down_rows(float (&d)[64], const uint32_t* a, uint64_t b,
                                                   int add) {
  if constexpr (std::is_same<T, __half>::value) {
    MAMBA_WGMMA_FRAGMENT("m64n128k16", "f16", MAMBA_ACCUMULATORS_64, MAMBA_OPERANDS_64, 64, 65, 66,
                         67, 68, 69, 1);
  } else {
    MAMBA_WGMMA_FRAGMENT("m64n128k16", "bf16", MAMBA_ACCUMULATORS_64, MAMBA_OPERANDS_64, 64, 65, 66,
                         67, 68, 69, 1);
  }
}

#undef MAMBA_WGMMA_TILES
#undef MAMBA_WGMMA_FRAGMENT
#undef MAMBA_OPERANDS_32
#undef MAMBA_OPERANDS_64
#undef MAMBA_ACCUMULATORS_32
#undef MAMBA_ACCUMULATORS_64

}  // namespace hopper
}  // namespace mamba
