// What the files of state space duality share. ssd.cu picks among:
//
//   ssd_step.cu    a few steps (decode): one read and one write of the state
//   ssd_hopper.cu  many steps on the tensor cores of sm_90
//   ssd_mma.cu     many steps in 16 bits on the tensor cores of sm_80 and later
//   ssd_tile.cu    any other shape with d_state up to 256, fp32 too; exact for any decay
//   ssd_any.cu     larger d_state
//
// The operator (Dao and Gu 2024, arXiv:2405.21060, section 3.1): dt = clamp(softplus(dt + bias)),
// h = exp(dt A + log_decay) h + dt x B^T, y = h C + D x, then y silu(z). A head has one decay.
#pragma once

#include "common/cuda/decay.cuh"
#include "common/cuda/gpu.cuh"
#include "common/cuda/kernels.cuh"
#include "common/cuda/lanes.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/sequence.cuh"
#include "state_space_dual/cuda/ssd_parts.h"

namespace mamba {

constexpr int64_t kFewSsdSteps = 8;
constexpr int kMostSsdTileStates = 256;

// A length that is split: part i starts at step i * part_length of the walk.
//
// kSsdStates: every part but the last starts from zeros and leaves its last state and its decay;
// kSsdOutputs: part i starts from starts[i] and writes y. In between ssd.cu chains the parts.
enum SsdPass { kSsdWhole, kSsdStates, kSsdOutputs };

struct SsdParts {
  SsdPass pass;
  int count;
  int64_t part_length;  // a multiple of kSsdChunk
  float* states;        // (count, batch, heads, head_dim, d_state): last states, then starts
  float* decays;        // (count, batch, heads): logarithms of base 2
};

// The kernel for these parameters on a GPU: by sizes, dtypes, alignment and compute capability.
enum class SsdForm { kStep, kHopper, kMma, kTile, kAny };
SsdForm ssd_form(const mamba_state_space_dual_params& p, const Gpu& gpu);

// Each "fits" looks at the same.
bool ssd_step_fits(const mamba_state_space_dual_params& p);
cudaError_t launch_ssd_step(const mamba_state_space_dual_params& p, cudaStream_t stream);

bool ssd_hopper_fits(const mamba_state_space_dual_params& p, const Gpu& gpu);
// Bytes for these sizes and every smaller batch and length; 0 where it never fits. Reads no
// pointer and no GPU: an engine may be built on another GPU than it runs on.
size_t ssd_hopper_workspace(const mamba_state_space_dual_params& p);
cudaError_t launch_ssd_hopper(const mamba_state_space_dual_params& p, void* workspace,
                              cudaStream_t stream);

bool ssd_mma_fits(const mamba_state_space_dual_params& p, const Gpu& gpu);
cudaError_t launch_ssd_mma(const mamba_state_space_dual_params& p, const SsdParts& parts,
                           cudaStream_t stream);
cudaError_t launch_ssd_tile(const mamba_state_space_dual_params& p, const SsdParts& parts,
                            cudaStream_t stream);

size_t ssd_any_workspace(const mamba_state_space_dual_params& p);
cudaError_t launch_ssd_any(const mamba_state_space_dual_params& p, void* workspace,
                           cudaStream_t stream);

// The step of memory that the walk reaches as its given step.
__device__ __forceinline__ int64_t walked(const mamba_state_space_dual_params& p, int64_t step) {
  return p.reverse ? p.length - 1 - step : step;
}

// A step of a head: dt after its bias, softplus and limits, and the logarithm of base 2 of the
// decay, which is at most 0.
struct SsdStep {
  float dt, decay;
};

// raw: of the input dt; log_decay: 0 where there is none. NaN stays NaN.
template <typename T>
__device__ __forceinline__ SsdStep ssd_step_of(const mamba_state_space_dual_params& p, float raw,
                                               float log_decay, float A, float bias) {
  float dt = raw + bias;
  if (p.dt_softplus) dt = softplus<T>(dt);
  dt = dt < p.dt_min ? p.dt_min : dt;
  dt = dt > p.dt_max ? p.dt_max : dt;
  return {dt, (dt * A + log_decay) * kLog2e};
}

__device__ __forceinline__ float log_decay_at(const mamba_state_space_dual_params& p, int64_t batch,
                                              int64_t step, int64_t head) {
  return p.log_decay ? p.log_decay[(batch * p.length + step) * p.heads + head] : 0.f;
}

// The skip of a channel of a head.
__device__ __forceinline__ float skip_at(const mamba_state_space_dual_params& p, int64_t head,
                                         int64_t channel) {
  const int64_t own = p.d_skip == 1 ? 0 : channel / (p.head_dim / p.d_skip);
  return p.D[head * p.d_skip + own];
}

// A number of a state whose dtype R is fp32 or T; without an initial state it is 0.
template <typename T>
__device__ __forceinline__ float load_state(const mamba_state_space_dual_params& p, int64_t at) {
  if (!p.initial_state) return 0.f;
  if (p.initial_state_dtype == MAMBA_FP32) return static_cast<const float*>(p.initial_state)[at];
  return to_float(static_cast<const T*>(p.initial_state)[at]);
}
template <typename T>
__device__ __forceinline__ void store_state(const mamba_state_space_dual_params& p, int64_t at,
                                            float value) {
  if (p.initial_state_dtype == MAMBA_FP32) {
    static_cast<float*>(p.last_state)[at] = value;
  } else {
    static_cast<T*>(p.last_state)[at] = from_float<T>(value);
  }
}

}  // namespace mamba
