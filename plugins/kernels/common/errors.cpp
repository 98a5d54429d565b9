#include "common/errors.h"

#include <cstdarg>
#include <cstdio>

namespace mamba {
namespace {

thread_local char last_error[512] = "";

bool known(mamba_dtype dtype) {
  return dtype == MAMBA_FP32 || dtype == MAMBA_FP16 || dtype == MAMBA_BF16;
}

// Name and value of what must be positive.
struct Size {
  const char* name;
  int64_t value;
};

template <size_t Count>
mamba_status check_sizes(const char* op, const Size (&sizes)[Count], mamba_dtype dtype) {
  for (const Size& size : sizes) {
    if (size.value < 1) {
      return fail(MAMBA_INVALID, "%s: %s is %lld, expected at least 1", op, size.name,
                  static_cast<long long>(size.value));
    }
  }
  if (!known(dtype)) return fail(MAMBA_INVALID, "%s: dtype %d is unknown", op, dtype);
  return MAMBA_OK;
}

}  // namespace

mamba_status fail(mamba_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof(last_error), format, arguments);
  va_end(arguments);
  return status;
}

mamba_status check(const mamba_selective_scan_params* params) {
  if (!params) return fail(MAMBA_INVALID, "selective_scan: params is null");
  const mamba_selective_scan_params& p = *params;
  const Size sizes[] = {{"batch", p.batch},
                        {"length", p.length},
                        {"d_inner", p.d_inner},
                        {"d_state", p.d_state},
                        {"n_groups", p.n_groups}};
  if (mamba_status bad = check_sizes("selective_scan", sizes, p.dtype)) return bad;
  if (p.d_inner % p.n_groups) {
    return fail(MAMBA_INVALID, "selective_scan: n_groups %lld does not divide d_inner %lld",
                static_cast<long long>(p.n_groups), static_cast<long long>(p.d_inner));
  }
  if (!p.u.data || !p.delta.data || !p.B.data || !p.C.data || !p.A || !p.D || !p.delta_bias ||
      !p.initial_state || !p.y || !p.last_state) {
    return fail(MAMBA_INVALID, "selective_scan: a tensor's pointer is null");
  }
  return MAMBA_OK;
}

mamba_status check(const mamba_causal_conv1d_params* params) {
  if (!params) return fail(MAMBA_INVALID, "causal_conv1d: params is null");
  const mamba_causal_conv1d_params& p = *params;
  const Size sizes[] = {
      {"batch", p.batch}, {"length", p.length}, {"channels", p.channels}, {"d_conv", p.d_conv}};
  if (mamba_status bad = check_sizes("causal_conv1d", sizes, p.dtype)) return bad;
  if (p.d_conv > kMaxTaps) {
    return fail(MAMBA_INVALID, "causal_conv1d: d_conv %lld is not supported, at most %lld",
                static_cast<long long>(p.d_conv), static_cast<long long>(kMaxTaps));
  }
  const bool has_state = p.initial_state && p.last_state;
  if (!p.x.data || !p.weight || !p.bias || !p.y || (p.d_conv > 1 && !has_state)) {
    return fail(MAMBA_INVALID, "causal_conv1d: a tensor's pointer is null");
  }
  return MAMBA_OK;
}

}  // namespace mamba

extern "C" {

int mamba_kernels_version(void) { return MAMBA_KERNELS_VERSION; }

const char* mamba_last_error(void) { return mamba::last_error; }

}  // extern "C"
