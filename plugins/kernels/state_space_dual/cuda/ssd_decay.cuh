// The decays within a chunk of 64 steps, for a chunk that is computed as products of matrices
// (arXiv:2405.21060, section 6).
//
// A chunk is four blocks of 16 steps. Every exponent is a sum of the decays of the steps that lie
// between, block by block: never the difference of two sums over the whole chunk, which a step that
// forgets everything would leave without digits. Within a block a difference is one of at most 16
// steps, each cut off where 2^x is 0 in fp32 anyway.
#pragma once

#include "state_space_dual/cuda/ssd.cuh"

namespace mamba {

constexpr int kSsdBlock = 16, kSsdChunkBlocks = kSsdChunk / kSsdBlock;
constexpr float kLeastDecay = -130.f;  // 2^kLeastDecay is 0

// Of each step i of a chunk; logarithms are of base 2.
struct SsdDecays {
  float from_block[kSsdChunk];    // logarithm of the decay from its block's start, its own included
  float dt[kSsdChunk];            // of the step
  float to_block_end[kSsdChunk];  // dt times the decay of the later steps of its block
  float from_chunk[kSsdChunk];    // the decay from the chunk's start
  float to_chunk_end[kSsdChunk];  // dt / scale times the decay of all later steps
  float blocks[kSsdChunkBlocks];  // logarithms of each block's decay
  float whole;                    // logarithm of the chunk's decay
  float scale;                    // at least 1, and at least every dt where T is fp16; else 1
};

// What a lane of the warp that prepares a chunk reads: two neighbouring steps.
struct SsdRawSteps {
  float dt[2], log_decay[2];
  bool exists[2];
};

template <typename T>
__device__ __forceinline__ SsdRawSteps read_ssd_steps(const mamba_state_space_dual_params& p,
                                                      int64_t batch, int64_t head, int64_t begin,
                                                      int64_t end) {
  SsdRawSteps raw = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t s = begin + threadIdx.x % 32 * 2 + i;
    raw.exists[i] = s < end;
    if (!raw.exists[i]) continue;
    const int64_t step = walked(p, s);
    raw.dt[i] = to_float(row<T>(p.dt, batch, step)[head]);
    raw.log_decay[i] = log_decay_at(p, batch, step, head);
  }
  return raw;
}

// By one warp. Steps that do not exist have dt 0 and no decay, so they change nothing.
template <typename T>
__device__ __forceinline__ void prepare_ssd_decays(const mamba_state_space_dual_params& p,
                                                   const SsdRawSteps& raw, float A, float bias,
                                                   SsdDecays& to) {
  constexpr int kLanes = kSsdBlock / 2;  // of a block
  const int lane = threadIdx.x % 32;
  float dt[2], decay[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const SsdStep step = ssd_step_of<T>(p, raw.dt[i], raw.log_decay[i], A, bias);
    dt[i] = raw.exists[i] ? step.dt : 0.f;
    decay[i] = raw.exists[i] ? step.decay : 0.f;
    if (decay[i] < kLeastDecay) decay[i] = kLeastDecay;  // NaN stays
  }
  float before = decay[0] + decay[1],
        after = before;  // sums over lanes up to this one, and from it
#pragma unroll
  for (int apart = 1; apart < kLanes; apart *= 2) {
    const float lower = __shfl_up_sync(~0u, before, apart, kLanes);
    const float upper = __shfl_down_sync(~0u, after, apart, kLanes);
    if (lane % kLanes >= apart) before += lower;
    if (lane % kLanes + apart < kLanes) after += upper;
  }
  before = __shfl_up_sync(~0u, before, 1, kLanes);
  after = __shfl_down_sync(~0u, after, 1, kLanes);
  if (lane % kLanes == 0) before = 0.f;
  if (lane % kLanes == kLanes - 1) after = 0.f;
  const float from[2] = {before + decay[0], before + decay[0] + decay[1]};
  const float to_end[2] = {decay[1] + after, after};
  float earlier = 0.f, later = 0.f, whole = 0.f;
#pragma unroll
  for (int block = 0; block < kSsdChunkBlocks; ++block) {
    const float of_block = __shfl_sync(~0u, from[1], block * kLanes + kLanes - 1);
    if (block < lane / kLanes) earlier += of_block;
    if (block > lane / kLanes) later += of_block;
    whole += of_block;
    if (lane == 0) to.blocks[block] = of_block;
  }
  float scale = 1.f;
  if constexpr (std::is_same_v<T, __half>) {
    scale = fmaxf(scale, fmaxf(dt[0], dt[1]));
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
      scale = fmaxf(scale, __shfl_xor_sync(~0u, scale, apart));
    }
  }
  if (lane == 0) {
    to.whole = whole;
    to.scale = scale;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int step = lane * 2 + i;
    to.from_block[step] = from[i];
    to.dt[step] = dt[i];
    to.to_block_end[step] = dt[i] * exp2_fast(to_end[i]);
    to.from_chunk[step] = exp2_fast(earlier + from[i]);
    to.to_chunk_end[step] = dt[i] / scale * exp2_fast(to_end[i] + later);
  }
}

}  // namespace mamba
