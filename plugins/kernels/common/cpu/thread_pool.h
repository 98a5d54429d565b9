// A small thread pool for callers that bring none of their own (PyTorch through ctypes).
#ifndef MAMBA_THREAD_POOL_H
#define MAMBA_THREAD_POOL_H

#include "mamba_kernels.h"

extern "C" {

// A mamba_parallel_for. scheduler points to an int64_t: how many threads may work, the caller
// included; NULL, or a count below 2, or a single task: the caller does it all. Threads are created
// on first use, sleep between calls and last as long as the process. Any number of threads may call
// at the same time; a forked child makes threads of its own. The caller's floating-point mode holds
// on every thread.
MAMBA_API void mamba_thread_pool_parallel_for(void* scheduler, size_t tasks,
                                              void (*body)(void* context, size_t task),
                                              void* context);
}

#endif  // MAMBA_THREAD_POOL_H
