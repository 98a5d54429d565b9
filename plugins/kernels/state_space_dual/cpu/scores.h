// C B^T within each chunk: the scores, which all heads of a group share.
#pragma once

#include "state_space_dual/cpu/block.h"

namespace mamba {
namespace MAMBA_ISA {

static inline int64_t rounded_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

static inline int64_t chunks_of(const mamba_state_space_dual_params& p) {
  return (p.length + kChunk - 1) / kChunk;
}

static inline int steps_of(const mamba_state_space_dual_params& p, int64_t chunk) {
  const int64_t left = p.length - chunk * kChunk;
  return static_cast<int>(left < kChunk ? left : kChunk);
}

constexpr int64_t kChunksATask = 8;

static int64_t scores_bytes(const mamba_state_space_dual_params& p) {
  return product(p.batch, p.n_groups, chunks_of(p), kChunk * kChunk * sizeof(float));
}

static inline float* scores_of(const DualCall& call, int64_t batch, int64_t group, int64_t chunk) {
  const mamba_state_space_dual_params& p = call.params;
  return call.scores + ((batch * p.n_groups + group) * chunks_of(p) + chunk) * (kChunk * kChunk);
}

static inline int64_t score_blocks(const mamba_state_space_dual_params& p) {
  return (chunks_of(p) + kChunksATask - 1) / kChunksATask;
}

// K scores of a step, of the vectors of states from n on: lanes beyond the states are zero.
template <typename T, int K>
static inline void score_steps(const float* C, const float* B, int64_t stride, float* scores) {
  Vec sums[K] = {};
  for (int64_t n = 0; n < stride; n += kLanes) {
    const Vec c = load<Fp32>(C + n, kLanes);
    for (int k = 0; k < K; ++k) sums[k] += c * load<Fp32>(B + k * stride + n, kLanes);
  }
  for (int k = 0; k < K; ++k) scores[k] = sum(sums[k]);
}

static int64_t score_scratch_bytes(const mamba_state_space_dual_params& p) {
  return product(2 * kChunk, rounded_up(p.d_state, kLanes), sizeof(float));
}

// C B^T of some chunks of a group, on and below the diagonal.
template <typename T>
static void score_chunks(const DualCall& call, size_t task, float* scratch) {
  const mamba_state_space_dual_params& p = call.params;
  const int64_t index = static_cast<int64_t>(task), blocks = score_blocks(p);
  const int64_t group = index / blocks % p.n_groups, batch = index / blocks / p.n_groups;
  const int64_t stride = rounded_up(p.d_state, kLanes);
  float *B = scratch, *C = scratch + kChunk * stride;
  memset(scratch, 0, 2 * kChunk * stride * sizeof(float));
  const int64_t begin = index % blocks * kChunksATask;
  for (int64_t chunk = begin; chunk < begin + kChunksATask && chunk < chunks_of(p); ++chunk) {
    const int steps = steps_of(p, chunk);
    for (int t = 0; t < steps; ++t) {
      const int64_t step = walked(p, chunk * kChunk + t);
      widen<T>(row<T>(p.B, batch, step) + group * p.d_state, B + t * stride, p.d_state);
      widen<T>(row<T>(p.C, batch, step) + group * p.d_state, C + t * stride, p.d_state);
    }
    float* scores = scores_of(call, batch, group, chunk);
    memset(scores, 0, kChunk * kChunk * sizeof(float));
    for (int t = 0; t < steps; ++t) {
      int j = 0;
      for (; j + 4 <= t + 1; j += 4) {
        score_steps<T, 4>(C + t * stride, B + j * stride, stride, scores + t * kChunk + j);
      }
      for (; j <= t; ++j) {
        score_steps<T, 1>(C + t * stride, B + j * stride, stride, scores + t * kChunk + j);
      }
    }
  }
}

}  // namespace MAMBA_ISA
}  // namespace mamba
