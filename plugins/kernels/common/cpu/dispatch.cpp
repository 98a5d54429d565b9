// The C interface of the CPU kernels: picks the instruction set, hands tasks to the caller's
// threads.
#include <cstdlib>

#include "common/checks.h"
#include "common/cpu/kernels.h"
#include "common/cpu/threads.h"
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
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return mamba::kAvx2Kernels;
  }
#endif
#endif
  return mamba::kBaselineKernels;
}

mamba_status no_memory(const char* op, int64_t bytes, int64_t d_state) {
  return mamba::fail(MAMBA_OUT_OF_MEMORY,
                     "%s: failed to allocate %lld bytes, which a thread works in at d_state %lld",
                     op, static_cast<long long>(bytes), static_cast<long long>(d_state));
}

}  // namespace

namespace mamba {

const CpuKernels& cpu_kernels() {
  static const CpuKernels& picked = pick();
  return picked;
}

}  // namespace mamba

extern "C" {

const char* mamba_cpu_instruction_set(void) { return mamba::cpu_kernels().name; }

mamba_status mamba_selective_scan_cpu(const mamba_selective_scan_params* params,
                                      mamba_parallel_for parallel_for, void* scheduler) {
  const mamba::Threads threads = {parallel_for, scheduler};
  if (mamba_status bad = mamba::check(params)) return bad;
  const mamba_selective_scan_params& p = *params;
  // Each number of state takes an exponential, which is several times what the others do.
  const int64_t work = mamba::product(p.batch, p.length, p.d_inner, p.d_state, 4);
  mamba::ScanCall call = {p, 0};
  threads.run(mamba::cpu_kernels().scan_tasks(p), mamba::cpu_kernels().scan_task, &call, work);
  if (!call.lacks_memory) return MAMBA_OK;
  return no_memory("selective_scan", mamba::cpu_kernels().scan_scratch_bytes(p), p.d_state);
}

mamba_status mamba_causal_conv1d_cpu(const mamba_causal_conv1d_params* params,
                                     mamba_parallel_for parallel_for, void* scheduler) {
  const mamba::Threads threads = {parallel_for, scheduler};
  if (mamba_status bad = mamba::check(params)) return bad;
  mamba_causal_conv1d_params p = *params;
  const int64_t work = mamba::product(p.batch, p.length, p.channels, p.d_conv);
  threads.run(mamba::cpu_kernels().conv_tasks(p), mamba::cpu_kernels().conv_task, &p, work);
  return MAMBA_OK;
}

mamba_status mamba_state_space_dual_cpu(const mamba_state_space_dual_params* params,
                                        mamba_parallel_for parallel_for, void* scheduler) {
  const mamba::Threads threads = {parallel_for, scheduler};
  constexpr char kName[] = "state_space_dual";
  if (mamba_status bad = mamba::check(params)) return bad;
  const mamba::CpuKernels& k = mamba::cpu_kernels();
  const mamba_state_space_dual_params& p = *params;
  const int64_t work = mamba::product(p.batch, p.length, p.heads, p.head_dim, p.d_state);
  mamba::DualCall call = {p, nullptr, 0};
  if (const int64_t bytes = k.dual_scores_bytes(p)) {
    const uint64_t rounded = (static_cast<uint64_t>(bytes) + 63) / 64 * 64;
    call.scores = static_cast<float*>(aligned_alloc(64, rounded));
    if (!call.scores) {
      return mamba::fail(MAMBA_OUT_OF_MEMORY,
                         "%s: failed to allocate %lld bytes, for products of C and B: use shorter "
                         "parts of the sequence",
                         kName, static_cast<long long>(bytes));
    }
    threads.run(k.dual_score_tasks(p), k.dual_score_task, &call, work);
  }
  if (!call.lacks_memory) threads.run(k.dual_tasks(p), k.dual_task, &call, work);
  free(call.scores);
  return call.lacks_memory ? no_memory(kName, k.dual_scratch_bytes(p), p.d_state) : MAMBA_OK;
}

mamba_status mamba_gated_rms_norm_cpu(const mamba_gated_rms_norm_params* params,
                                      mamba_parallel_for parallel_for, void* scheduler) {
  const mamba::Threads threads = {parallel_for, scheduler};
  if (mamba_status bad = mamba::check(params)) return bad;
  mamba_gated_rms_norm_params p = *params;
  const int64_t work = mamba::product(p.batch, p.length, p.groups, p.group_width);
  threads.run(mamba::cpu_kernels().norm_tasks(p), mamba::cpu_kernels().norm_task, &p, work);
  return MAMBA_OK;
}

}  // extern "C"
