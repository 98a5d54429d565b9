// The recurrence of scan_mma.cu: pairs of steps on tensor cores. What a product of matrices
// (m16n8k8, tf32) does for a warp of 8 channels: row r of the result is channel r at one step, row
// r + 8 the same channel at the next, and a column a state.
//
//   inputs   dt u of steps k = 0..3 times B, of which all but the rows' own steps are masked. A
//            lane reads dt u of one channel and step and B of as few, instead of all of a step.
//            dt u is there twice: what tf32 keeps of it, and of the rest. B is exact.
//   outputs  for bf16, h times C of 8 steps, a column each, of which the rows' own are kept: what
//            tf32 drops of h is less than y loses when it is rounded. For fp16, C comes from a
//            product with ones, and C h is summed over lanes with the part that tf32 drops.
#pragma once

#include "selective_scan/cuda/scan.cuh"

namespace mamba {

constexpr int kRows = 8;                      // channels of a warp
constexpr int kGroup = 8;                     // steps whose numbers a warp reads at once
constexpr int kStateBlocks = kMmaStates / 8;  // products that have all states

// sum += left right, in tf32.
__device__ __forceinline__ void multiply_add(float (&sum)[4], float a0, float a1, float a2,
                                             float a3, float b0, float b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)),
        "r"(__float_as_uint(a3)), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
#endif
}
__device__ __forceinline__ void multiply_add(float (&sum)[4], float a0, float a1, float b0) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(b0)));
#endif
}

// What tf32 drops of x.
__device__ __forceinline__ float rest(float x) {
  return x - __uint_as_float(__float_as_uint(x) & 0xffffe000u);
}

// What a lane reads for 8 steps: of its channel, lane / 4, and of step lane % 4 of each half.
template <bool kKeepsRest>
struct Group {
  float2 dt_du[2];
  float B[2][kStateBlocks];
  float C[2][kStateBlocks];
};

template <typename S, bool kKeepsRest>
__device__ __forceinline__ void load(const typename S::Tile& tile, int group, int channel, int lane,
                                     Group<kKeepsRest>& to) {
  const int r = lane / 4, q = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int s = group * kGroup + half * 4 + q;
    to.dt_du[half] = tile.dt_du[s][channel + r];
#pragma unroll
    for (int n = 0; n < kStateBlocks; ++n) {
      to.B[half][n] = tile.B[s][n * 8 + r];
      if constexpr (kKeepsRest) to.C[half][n] = tile.C[s][n * 8 + r];
    }
  }
  if constexpr (!kKeepsRest) {
#pragma unroll
    for (int n = 0; n < kStateBlocks; ++n) {
      const auto two = *reinterpret_cast<const float2*>(&tile.C[group * kGroup + r][n * 8 + q * 2]);
      to.C[0][n] = two.x;
      to.C[1][n] = two.y;
    }
  }
}

// The recurrence over a group. Of y, a lane gets steps lane % 4 * 2 and the next of its channel.
template <bool kKeepsRest>
__device__ __forceinline__ void walk_group(const Group<kKeepsRest>& group,
                                           const float (&A)[kStateBlocks][2], int lane,
                                           float (&h)[kStateBlocks][2], float (&y)[2]) {
  const int q = lane % 4;
  const bool is_odd = q & 1;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float dt = group.dt_du[half].x, du = group.dt_du[half].y, du_rest = rest(du);
    const float a0 = is_odd ? 0.f : du, a1 = is_odd ? du : 0.f;
    const float a2 = is_odd ? 0.f : du_rest, a3 = is_odd ? du_rest : 0.f;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int s = half * 4 + pair * 2;
      const bool is_own = q / 2 == pair;
      const float dt0 = __shfl_sync(~0u, dt, pair * 2, 4);
      const float dt1 = __shfl_sync(~0u, dt, pair * 2 + 1, 4);
      float sums[4] = {};
      float p0 = 0.f, p1 = 0.f;
#pragma unroll
      for (int n = 0; n < kStateBlocks; ++n) {
        float input[4] = {};
        const float B = is_own ? group.B[half][n] : 0.f;
        multiply_add(input, a0, a1, a2, a3, B, B);
        float first[2], second[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          first[j] = decay_of(dt0, A[n][j], decay_shift(s)) * h[n][j] + input[j];
          second[j] = decay_of(dt1, A[n][j], decay_shift(s + 1)) * first[j] + input[2 + j];
          h[n][j] = second[j];
        }
        if constexpr (kKeepsRest) {
          float C[4] = {};
          const float one0 = is_own && !is_odd ? 1.f : 0.f, one1 = is_own && is_odd ? 1.f : 0.f;
          multiply_add(C, one0, one1, group.C[half][n]);
          p0 += C[0] * first[0];
          p0 += C[1] * first[1];
          p1 += C[2] * second[0];
          p1 += C[3] * second[1];
        } else {
          multiply_add(sums, first[0], second[0], first[1], second[1], group.C[0][n],
                       group.C[1][n]);
        }
      }
      if constexpr (kKeepsRest) multiply_add(sums, p0, p1, rest(p0), rest(p1), 1.f, 1.f);
      // Columns of bf16's sums are steps, and those of fp16's are copies.
      const bool keeps = q == half * 2 + pair;
      y[0] = keeps ? sums[0] : y[0];
      y[1] = keeps ? sums[3] : y[1];
    }
  }
}

// A tile with numbers that are not finite, step by step: in a product of matrices they would reach
// the steps before them, whose share of them is 0 times what is not finite.
template <typename S>
__device__ __forceinline__ void walk_plainly(typename S::Tile& tile,
                                             const float (&A)[kStateBlocks][2], int column,
                                             int lane, float (&h)[kStateBlocks][2]) {
  const int r = lane / 4, q = lane % 4;
#pragma unroll 1
  for (int s = 0; s < S::kSteps; ++s) {
    const float2 dt_du = tile.dt_du[s][column + r];
    float y = 0.f;
#pragma unroll
    for (int n = 0; n < kStateBlocks; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int at = n * 8 + q * 2 + j;
        h[n][j] = decay_of(dt_du.x, A[n][j], decay_shift(s)) * h[n][j] + dt_du.y * tile.B[s][at];
        y += tile.C[s][at] * h[n][j];
      }
    }
    y += __shfl_xor_sync(~0u, y, 1);
    y += __shfl_xor_sync(~0u, y, 2);
    if (q == 0) tile.y[s][column + r] = y;
  }
}

}  // namespace mamba
