// State space duality on the tensor cores of Hopper (sm_90a), for numbers of 16 bits. What the host
// and the kernels share; ssd.cuh declares what ssd.cu calls.
//
// The algorithm (Dao and Gu 2024, arXiv:2405.21060, section 6): the length is cut into chunks of 64
// steps. Within a chunk, with a_i the exponent of step i's decay and L_i the sum of a over the
// steps 1..i of the chunk, and h the state before the chunk,
//
//   S_ij = (C_i . B_j) dt_j exp(L_i - L_j) for j <= i, D_h more on the diagonal     (quadratic
//   form) y_i  = sum_j S_ij x_j + exp(L_i) h C_i                                          (outputs)
//   h    = exp(L_64) h + sum_j (dt_j exp(L_64 - L_j) x_j) B_j^T                     (chunk's state)
//
// One warpgroup, a consumer, walks the chunks of one slice of 64 channels of a head (zeros behind
// the last channel) and keeps h (64 x d_state, fp32) in its registers. It computes Y^T = h C^T +
// X^T S^T, for then h and X are operands in registers, and only S passes through shared memory. The
// consumers of a block share the tiles of B and C. A producer warpgroup has one warp that starts
// the copy engine, and one warp for each consumer that turns dt into the factors of a chunk
// (ssd_hopper_steps.cuh).
//
//   ssd_hopper_outputs.cuh   the kernel that computes y and the last state; its producers are in
//                            ssd_hopper_producers.cuh
//   ssd_hopper_states.cuh    the kernel before it where the length is split: each part's own state
//   ssd_hopper_tiles.cuh     what lies where in shared memory
//   hopper_wgmma.cuh         products;  hopper_ptx.cuh: other instructions
//
// With few heads the length is split into parts, so that all multiprocessors have work. Two
// launches: the first computes what each part adds to the state, the second starts each part from
// the initial state and the parts before it.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "mamba_kernels.h"

namespace mamba {

constexpr int kHopperChunk = 64;
constexpr int kHopperSlice = 64;  // channels of one consumer

// How the work is laid out over the GPU.
struct SsdHopperPlan {
  int slices_a_block;  // 1 (two blocks share a multiprocessor) or 2
  bool persistent;     // one wave of blocks, each of which takes a sequence's slices after another
  int parts;           // of the length; 1 where persistent
  int part_chunks;
  int state_slices_a_block;  // of the first launch, where the length is split
};

// Boxes of one chunk: 64 channels of one head of x, y and z; 64 states of one group of B and C.
struct SsdHopperMaps {
  CUtensorMap x, B, C, z, y;
};

struct SsdHopperArguments {
  int batch, length, chunks;
  int heads, head_dim, d_skip;
  int slices, slices_a_head, slices_a_group;  // of all heads; a head's; a group's
  int dt_softplus;
  float dt_min, dt_max;
  const void* dt;  // T
  int64_t dt_batch_stride, dt_step_stride;
  const float *A, *D, *dt_bias;
  int state_is_fp32;
  const void* initial_state;  // nullptr for zeros
  void* last_state;
  // Of a split length:
  int parts, part_chunks;
  void* initial_copy;  // where last_state is initial_state: the first launch copies it there
  uint4* part_states;  // (parts - 1, batch, slices): a state as its consumer holds it, as T
  float* part_scales;  // (parts - 1, batch, slices, 128): what each thread's numbers count
  float* part_decays;  // (parts - 1, batch, slices)
};

// The plan of the current GPU. Only what fits may be planned; a workspace of
// ssd_hopper_workspace(p) bytes is enough for every plan whose parts of all sequences run at a
// time.
SsdHopperPlan ssd_hopper_plan(const mamba_state_space_dual_params& p);
cudaError_t launch_ssd_hopper(const mamba_state_space_dual_params& p, const SsdHopperPlan& plan,
                              void* workspace, cudaStream_t stream);

// The launches of one dtype, compiled for sm_90a (ssd_hopper_*_sm90a.cu).
cudaError_t launch_ssd_hopper_bf16(const SsdHopperMaps& maps, const SsdHopperArguments& arguments,
                                   const SsdHopperPlan& plan, int d_state, bool gated,
                                   cudaStream_t stream);
cudaError_t launch_ssd_hopper_fp16(const SsdHopperMaps& maps, const SsdHopperArguments& arguments,
                                   const SsdHopperPlan& plan, int d_state, bool gated,
                                   cudaStream_t stream);

}  // namespace mamba
