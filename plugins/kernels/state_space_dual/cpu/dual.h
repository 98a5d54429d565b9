// State space duality on a CPU: a task owns some channels of a head and walks the sequence, in
// chunks (chunks.h) or, a few steps or very many states, row by row (rows.h).
#pragma once

#include "state_space_dual/cpu/chunks.h"
#include "state_space_dual/cpu/rows.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr int64_t kFewDualSteps = 8;  // up to here transposing the states costs more than it saves
// Beyond, a task's matrices would leave the caches, and ask for memory far beyond that of the
// tensors.
constexpr int64_t kMostStatesInChunks = 8192;

static inline bool walks_rows(const mamba_state_space_dual_params& p) {
  return p.length <= kFewDualSteps || p.d_state > kMostStatesInChunks;
}

static int64_t dual_scores_bytes(const mamba_state_space_dual_params& p) {
  return walks_rows(p) ? 0 : scores_bytes(p);
}

static size_t dual_score_tasks(const mamba_state_space_dual_params& p) {
  return static_cast<size_t>(p.batch * p.n_groups * score_blocks(p));
}

static size_t dual_tasks(const mamba_state_space_dual_params& p) {
  return static_cast<size_t>(p.batch * p.heads * blocks_of_head(p));
}

// Of a task of either kind, at most.
static int64_t dual_scratch_bytes(const mamba_state_space_dual_params& p) {
  if (walks_rows(p)) return rows_scratch_bytes(p);
  const int64_t scores = score_scratch_bytes(p), chunks = chunks_scratch_bytes(p);
  return scores > chunks ? scores : chunks;
}

template <typename T>
static bool dual_score_task(const DualCall& call, size_t task) {
  const Scratch scratch(score_scratch_bytes(call.params));
  if (scratch.data()) score_chunks<T>(call, task, scratch.data());
  return scratch.data();
}

template <typename T, typename S>
static bool dual_task(const DualCall& call, size_t task) {
  const mamba_state_space_dual_params& p = call.params;
  const bool by_rows = walks_rows(p);
  const Scratch scratch(by_rows ? rows_scratch_bytes(p) : chunks_scratch_bytes(p));
  if (!scratch.data()) return false;
  if (by_rows) {
    walk_in_rows<T, S>(p, block_of(p, task), scratch.data());
  } else {
    walk_in_chunks<T, S>(call, block_of(p, task), scratch.data());
  }
  return true;
}

template <typename Task>
static inline void guard_memory(DualCall& call, Task task) {
  if (__atomic_load_n(&call.lacks_memory, __ATOMIC_RELAXED)) return;
  if (!task()) __atomic_store_n(&call.lacks_memory, 1, __ATOMIC_RELAXED);
}

static void run_dual_score_task(void* context, size_t task) {
  DualCall& call = *static_cast<DualCall*>(context);
  guard_memory(call, [&] {
    switch (call.params.dtype) {
      case MAMBA_FP16:
        return dual_score_task<Fp16>(call, task);
      case MAMBA_BF16:
        return dual_score_task<Bf16>(call, task);
      default:
        return dual_score_task<Fp32>(call, task);
    }
  });
}

static void run_dual_task(void* context, size_t task) {
  DualCall& call = *static_cast<DualCall*>(context);
  const bool states_are_fp32 = call.params.initial_state_dtype == MAMBA_FP32;
  guard_memory(call, [&] {
    switch (call.params.dtype) {
      case MAMBA_FP16:
        return states_are_fp32 ? dual_task<Fp16, Fp32>(call, task)
                               : dual_task<Fp16, Fp16>(call, task);
      case MAMBA_BF16:
        return states_are_fp32 ? dual_task<Bf16, Fp32>(call, task)
                               : dual_task<Bf16, Bf16>(call, task);
      default:
        return dual_task<Fp32, Fp32>(call, task);
    }
  });
}

}  // namespace MAMBA_ISA
}  // namespace mamba
