// The caller's threads.
#pragma once

#include "mamba_kernels.h"

namespace mamba {

struct Threads {
  mamba_parallel_for parallel_for;  // null: the calling thread does it all
  void* scheduler;

  // Work (numbers of state times steps, or of a weight) below which waking threads costs more than
  // it saves.
  static constexpr int64_t kWorthWaking = 1 << 15;

  void run(size_t tasks, void (*task)(void*, size_t), void* context, int64_t work) const {
    if (parallel_for && tasks > 1 && work >= kWorthWaking) {
      parallel_for(scheduler, tasks, task, context);
      return;
    }
    for (size_t i = 0; i < tasks; ++i) task(context, i);
  }
};

}  // namespace mamba
