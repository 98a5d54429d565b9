// How a product whose depth is shared out over the blocks of a cluster ends: their sums, which lie
// in shared memory, are added up in a fixed order and written.
#pragma once

#include "common/cuda/cluster.cuh"
#include "common/cuda/numeric.cuh"
#include "mamba_kernels.h"

namespace mamba {

constexpr int kMostShares = 8;  // of the depth: blocks of a cluster
constexpr int kFour = 4;        // sums that a thread adds up at once

__device__ __forceinline__ void add(float4& sum, const float4& other) {
  sum.x += other.x, sum.y += other.y, sum.z += other.z, sum.w += other.w;
}

// The sum of four numbers at the same place in each of the first `blocks` blocks of the cluster.
__device__ __forceinline__ float4 sum_over_blocks(const float* own, int blocks) {
  if (blocks == 1) return *reinterpret_cast<const float4*>(own);
  float4 parts[kMostShares] = {}, total = {};  // all on their way at once
#pragma unroll
  for (int other = 0; other < kMostShares; ++other) {
    if (other < blocks) parts[other] = load_from_block(own, other);
  }
#pragma unroll
  for (int other = 0; other < kMostShares; ++other) add(total, parts[other]);
  return total;
}

// c = total, plus the addend where there is one.
template <typename C>
__device__ __forceinline__ void write_four(const mamba_product& p, int64_t at, float4 total) {
  using Four = Pack<C, kFour>;
  if (p.addend) {
    const Four four = *reinterpret_cast<const Four*>(static_cast<const C*>(p.addend) + at);
    add(total, make_float4(to_float(four.values[0]), to_float(four.values[1]),
                           to_float(four.values[2]), to_float(four.values[3])));
  }
  const Four four = {from_float<C>(total.x), from_float<C>(total.y), from_float<C>(total.z),
                     from_float<C>(total.w)};
  *reinterpret_cast<Four*>(static_cast<C*>(p.c) + at) = four;
}

// The same where c is fp32 or T.
template <typename T>
__device__ __forceinline__ void write_product(const mamba_product& p, int64_t at, float4 total) {
  if (p.c_dtype == MAMBA_FP32) {
    write_four<float>(p, at, total);
  } else {
    write_four<T>(p, at, total);
  }
}

}  // namespace mamba
