// The C interface of the CPU kernels: checks sizes, picks the instruction set, hands tasks to the
// caller's threads.
#include <cstdarg>
#include <cstdio>

#include "../mamba_kernels.h"
#include "kernels.h"

namespace {

thread_local char last_error[256] = "";

mamba_status invalid(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof(last_error), format, arguments);
  va_end(arguments);
  return MAMBA_INVALID;
}

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

bool known(mamba_dtype dtype) {
  return dtype == MAMBA_FP32 || dtype == MAMBA_FP16 || dtype == MAMBA_BF16;
}

// Name and value of what must be positive.
struct Size {
  const char* name;
  int64_t value;
};

template <size_t Count>
const Size* first_bad(const Size (&sizes)[Count]) {
  for (const Size& size : sizes) {
    if (size.value < 1) return &size;
  }
  return nullptr;
}

}  // namespace

extern "C" {

int mamba_kernels_version(void) { return MAMBA_KERNELS_VERSION; }

const char* mamba_cpu_instruction_set(void) { return kernels().name; }

const char* mamba_last_error(void) { return last_error; }

mamba_status mamba_selective_scan_cpu(const mamba_selective_scan_params* params,
                                      mamba_parallel_for parallel_for, void* scheduler) {
  if (!params) return invalid("selective_scan: params is null");
  mamba_selective_scan_params p = *params;
  const Size sizes[] = {{"batch", p.batch},
                        {"length", p.length},
                        {"d_inner", p.d_inner},
                        {"d_state", p.d_state},
                        {"n_groups", p.n_groups}};
  if (const Size* bad = first_bad(sizes)) {
    return invalid("selective_scan: %s is %lld, expected at least 1", bad->name,
                   static_cast<long long>(bad->value));
  }
  if (p.d_inner % p.n_groups) {
    return invalid("selective_scan: n_groups %lld does not divide d_inner %lld",
                   static_cast<long long>(p.n_groups), static_cast<long long>(p.d_inner));
  }
  if (!known(p.dtype)) return invalid("selective_scan: dtype %d is unknown", p.dtype);
  if (!p.u.data || !p.delta.data || !p.B.data || !p.C.data || !p.A || !p.D || !p.delta_bias ||
      !p.initial_state || !p.y || !p.last_state) {
    return invalid("selective_scan: a tensor's pointer is null");
  }
  const int64_t work = p.batch * p.length * p.d_inner * p.d_state;
  run(kernels().scan_tasks(p), kernels().scan_task, &p, work, parallel_for, scheduler);
  return MAMBA_OK;
}

mamba_status mamba_causal_conv1d_cpu(const mamba_causal_conv1d_params* params,
                                     mamba_parallel_for parallel_for, void* scheduler) {
  if (!params) return invalid("causal_conv1d: params is null");
  mamba_causal_conv1d_params p = *params;
  const Size sizes[] = {
      {"batch", p.batch}, {"length", p.length}, {"channels", p.channels}, {"d_conv", p.d_conv}};
  if (const Size* bad = first_bad(sizes)) {
    return invalid("causal_conv1d: %s is %lld, expected at least 1", bad->name,
                   static_cast<long long>(bad->value));
  }
  if (p.d_conv > 16) {
    return invalid("causal_conv1d: d_conv %lld is not supported, at most 16",
                   static_cast<long long>(p.d_conv));
  }
  if (!known(p.dtype)) return invalid("causal_conv1d: dtype %d is unknown", p.dtype);
  const bool has_state = p.initial_state && p.last_state;
  if (!p.x.data || !p.weight || !p.bias || !p.y || (p.d_conv > 1 && !has_state)) {
    return invalid("causal_conv1d: a tensor's pointer is null");
  }
  const int64_t work = p.batch * p.length * p.channels * p.d_conv;
  run(kernels().conv_tasks(p), kernels().conv_task, &p, work, parallel_for, scheduler);
  return MAMBA_OK;
}

}  // extern "C"
