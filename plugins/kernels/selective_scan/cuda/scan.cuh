// What the files of the selective scan share. scan.cu picks among:
//
//   scan_step.cu    a few steps (decode): one read and one write of the state
//   scan_narrow.cu  d_state up to 4: chunks of neighbouring steps side by side
//   scan_mma.cu     16 bits, d_state 8 or 16, one group: as scan_pipe.cu, on tensor cores
//   scan_pipe.cu    d_state up to 128, one group: scan warps and helper warps side by side
//   scan_tile.cu    any other shape with d_state up to 256; also the two passes of a split length
//   scan_any.cu     larger d_state; exact zero-order hold for B
//
// The recurrence (Gu and Dao 2023, "Mamba", section 3.2), with zero-order hold for A and Euler's
// rule for B: h = exp(dt A) h + dt u B, y = C h + D u, then y silu(z). scan_any.cu alone holds
// exact_zoh, with which (exp(dt A) - 1) / A takes the place of dt before u B.
#pragma once

#include "common/cuda/decay.cuh"
#include "common/cuda/kernels.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/sequence.cuh"
#include "selective_scan/cuda/scan_parts.h"

namespace mamba {

constexpr int64_t kFewSteps = 8;
constexpr int kNarrowStates = 4;
constexpr int kMmaStates = 16;
constexpr int kPipeStates = 128;

// A length that is split: part i starts at step i * part_length of the walk.
//
// kStates: every part starts from zeros and leaves its last state and the sum of its dt;
// kOutputs: part i starts from starts[i] and writes y. In between scan.cu chains the parts: the
// decay of a whole part is exp(A sum dt).
enum ScanPass { kWhole, kStates, kOutputs };

struct ScanParts {
  ScanPass pass;
  int count;
  int64_t part_length;
  float* states;   // (count, batch, d_inner, d_state): last states, then starts
  float* dt_sums;  // (count, batch, d_inner)
};

bool narrow_fits(const mamba_selective_scan_params& p);
bool mma_fits(const mamba_selective_scan_params& p);
bool pipe_fits(const mamba_selective_scan_params& p);

cudaError_t launch_scan_step(const mamba_selective_scan_params& p, cudaStream_t stream);
cudaError_t launch_scan_narrow(const mamba_selective_scan_params& p, cudaStream_t stream);
cudaError_t launch_scan_mma(const mamba_selective_scan_params& p, cudaStream_t stream);
cudaError_t launch_scan_pipe(const mamba_selective_scan_params& p, cudaStream_t stream);
cudaError_t launch_scan_tile(const mamba_selective_scan_params& p, const ScanParts& parts,
                             cudaStream_t stream);
cudaError_t launch_scan_any(const mamba_selective_scan_params& p, cudaStream_t stream);

// What a scan of few channels a block takes in place of delta: rows of dt, `depth` numbers each,
// times weight (depth, d_inner), which are not rounded on the way.
struct ScanDtProj {
  mamba_sequence dt;
  const void* weight;
  int64_t depth;
};
// Whether it does for these sizes. delta is not read then.
bool scan_does_dt_proj(const mamba_selective_scan_params& p, const ScanDtProj& proj);
cudaError_t launch_scan(const mamba_selective_scan_params& p, const ScanDtProj& proj,
                        cudaStream_t stream);

// The step of memory that the walk reaches as its given step.
__device__ __forceinline__ int64_t walked(const mamba_selective_scan_params& p, int64_t step) {
  return p.reverse ? p.length - 1 - step : step;
}

}  // namespace mamba
