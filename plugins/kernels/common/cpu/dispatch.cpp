// The C interface of the CPU kernels: picks the instruction set, hands tasks to the caller's
// threads.
#include "common/checks.h"
#include "common/cpu/kernels.h"
#include "common/errors.h"
#include "common/sizes.h"

namespace {

const mamba::CpuKernels& pick() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(MAMBA_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return mamba::kAvx512Kernels;
  }
#endif
#if defined(MAMBA_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return mamba::kAvx2Kernels;
#endif
#endif
  return mamba::kBaselineKernels;
}

const mamba::CpuKernels& kernels() {
  static const mamba::CpuKernels& picked = pick();
  return picked;
}

// Work (numbers of state times steps) below which waking threads costs more than it saves.
constexpr int64_t kWorthThreads = 1 << 15;

void run(size_t tasks, void (*task)(void*, size_t), void* params, int64_t work,
         mamba_parallel_for parallel_for, void* scheduler) {
  if (parallel_for && tasks > 1 && work >= kWorthThreads) {
    parallel_for(scheduler, tasks, task, params);
    return;
  }
  for (size_t i = 0; i < tasks; ++i) task(params, i);
}

}  // namespace

extern "C" {

const char* mamba_cpu_instruction_set(void) { return kernels().name; }

mamba_status mamba_selective_scan_cpu(const mamba_selective_scan_params* params,
                                      mamba_parallel_for parallel_for, void* scheduler) {
  if (mamba_status bad = mamba::check(params)) return bad;
  const mamba_selective_scan_params& p = *params;
  const int64_t work = mamba::product(p.batch, p.length, p.d_inner, p.d_state);
  mamba::ScanCall call = {p, 0};
  run(kernels().scan_tasks(p), kernels().scan_task, &call, work, parallel_for, scheduler);
  if (!call.lacks_memory) return MAMBA_OK;
  return mamba::fail(MAMBA_OUT_OF_MEMORY,
                     "selective_scan: failed to allocate %lld bytes, which a thread works in at "
                     "d_state %lld",
                     static_cast<long long>(kernels().scan_scratch_bytes(p)),
                     static_cast<long long>(p.d_state));
}

mamba_status mamba_causal_conv1d_cpu(const mamba_causal_conv1d_params* params,
                                     mamba_parallel_for parallel_for, void* scheduler) {
  if (mamba_status bad = mamba::check(params)) return bad;
  mamba_causal_conv1d_params p = *params;
  const int64_t work = mamba::product(p.batch, p.length, p.channels, p.d_conv);
  run(kernels().conv_tasks(p), kernels().conv_task, &p, work, parallel_for, scheduler);
  return MAMBA_OK;
}

}  // extern "C"
