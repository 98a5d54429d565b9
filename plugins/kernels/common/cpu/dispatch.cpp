// The C interface of the CPU kernels: picks the instruction set, hands tasks to the caller's
// threads.
#include <cstdlib>

#include "common/checks.h"
#include "common/cpu/operator_work.h"
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

constexpr char kDual[] = "state_space_dual";

mamba_status no_memory(const char* op, int64_t bytes, int64_t d_state) {
  return mamba::fail(MAMBA_OUT_OF_MEMORY,
                     "%s: failed to allocate %lld bytes, which a thread works in at d_state %lld",
                     op, static_cast<long long>(bytes), static_cast<long long>(d_state));
}

// An operator that is all of a call.
template <typename Work, typename Params>
mamba_status run_alone(const Params* params, mamba_parallel_for parallel_for, void* scheduler) {
  if (mamba_status bad = mamba::check(params)) return bad;
  Work work;
  mamba::Phases phases;
  if (mamba_status bad = work.add(*params, phases)) return bad;
  phases.run({parallel_for, scheduler});
  return work.outcome();
}

}  // namespace

namespace mamba {

const CpuKernels& cpu_kernels() {
  static const CpuKernels& picked = pick();
  return picked;
}

mamba_status ScanWork::add(const mamba_selective_scan_params& params, Phases& phases) {
  if (mamba_status bad = check(&params)) return bad;
  call_.params = params;
  const mamba_selective_scan_params& p = call_.params;
  // Each number of state takes an exponential, which is several times what the others do.
  const int64_t work = product(p.batch, p.length, p.d_inner, p.d_state, 4);
  phases.add(cpu_kernels().scan_tasks(p), cpu_kernels().scan_task, &call_, work);
  return MAMBA_OK;
}

mamba_status ScanWork::outcome() const {
  if (!call_.lacks_memory) return MAMBA_OK;
  const mamba_selective_scan_params& p = call_.params;
  return no_memory("selective_scan", cpu_kernels().scan_scratch_bytes(p), p.d_state);
}

mamba_status ConvWork::add(const mamba_causal_conv1d_params& params, Phases& phases) {
  if (mamba_status bad = check(&params)) return bad;
  params_ = params;
  const mamba_causal_conv1d_params& p = params_;
  phases.add(cpu_kernels().conv_tasks(p), cpu_kernels().conv_task, &params_,
             product(p.batch, p.length, p.channels, p.d_conv));
  return MAMBA_OK;
}

DualWork::~DualWork() { free(call_.scores); }

mamba_status DualWork::add(const mamba_state_space_dual_params& params, Phases& phases) {
  if (mamba_status bad = check(&params)) return bad;
  call_.params = params;
  const mamba_state_space_dual_params& p = call_.params;
  const CpuKernels& k = cpu_kernels();
  const int64_t work = product(p.batch, p.length, p.heads, p.head_dim, p.d_state);
  if (const int64_t bytes = k.dual_scores_bytes(p)) {
    const uint64_t rounded = (static_cast<uint64_t>(bytes) + 63) / 64 * 64;
    call_.scores = static_cast<float*>(aligned_alloc(64, rounded));
    if (!call_.scores) {
      return fail(MAMBA_OUT_OF_MEMORY,
                  "%s: failed to allocate %lld bytes, for products of C and B: use shorter "
                  "parts of the sequence",
                  kDual, static_cast<long long>(bytes));
    }
    phases.add(k.dual_score_tasks(p), k.dual_score_task, &call_, work);
  }
  phases.add(k.dual_tasks(p), k.dual_task, &call_, work);
  return MAMBA_OK;
}

mamba_status DualWork::outcome() const {
  if (!call_.lacks_memory) return MAMBA_OK;
  const mamba_state_space_dual_params& p = call_.params;
  return no_memory(kDual, cpu_kernels().dual_scratch_bytes(p), p.d_state);
}

mamba_status GatedNormWork::add(const mamba_gated_rms_norm_params& params, Phases& phases) {
  if (mamba_status bad = check(&params)) return bad;
  params_ = params;
  const mamba_gated_rms_norm_params& p = params_;
  phases.add(cpu_kernels().norm_tasks(p), cpu_kernels().norm_task, &params_,
             product(p.batch, p.length, p.groups, p.group_width));
  return MAMBA_OK;
}

}  // namespace mamba

extern "C" {

const char* mamba_cpu_instruction_set(void) { return mamba::cpu_kernels().name; }

mamba_status mamba_selective_scan_cpu(const mamba_selective_scan_params* params,
                                      mamba_parallel_for parallel_for, void* scheduler) {
  return run_alone<mamba::ScanWork>(params, parallel_for, scheduler);
}

mamba_status mamba_causal_conv1d_cpu(const mamba_causal_conv1d_params* params,
                                     mamba_parallel_for parallel_for, void* scheduler) {
  return run_alone<mamba::ConvWork>(params, parallel_for, scheduler);
}

mamba_status mamba_state_space_dual_cpu(const mamba_state_space_dual_params* params,
                                        mamba_parallel_for parallel_for, void* scheduler) {
  return run_alone<mamba::DualWork>(params, parallel_for, scheduler);
}

mamba_status mamba_gated_rms_norm_cpu(const mamba_gated_rms_norm_params* params,
                                      mamba_parallel_for parallel_for, void* scheduler) {
  return run_alone<mamba::GatedNormWork>(params, parallel_for, scheduler);
}

}  // extern "C"
