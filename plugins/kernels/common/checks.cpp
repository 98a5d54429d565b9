#include "common/checks.h"

#include <cfloat>
#include <cstddef>
#include <cstring>

#include "common/errors.h"
#include "common/sizes.h"

namespace mamba {
namespace {

// A dtype as the number that the caller wrote: as an enumerator it would be undefined where it is
// none of the three.
int number_of(const mamba_dtype& dtype) {
  static_assert(sizeof(mamba_dtype) == sizeof(int));
  int number = 0;
  std::memcpy(&number, &dtype, sizeof number);
  return number;
}

bool known(int dtype) { return dtype == MAMBA_FP32 || dtype == MAMBA_FP16 || dtype == MAMBA_BF16; }

// Name and value of what must be at least 1.
struct Size {
  const char* name;
  int64_t value;
};

template <size_t Count>
mamba_status check_positive(const char* op, const Size (&sizes)[Count], int dtype) {
  for (const Size& size : sizes) {
    if (size.value < 1) {
      return fail(MAMBA_INVALID, "%s: %s is %lld, expected at least 1", op, size.name,
                  static_cast<long long>(size.value));
    }
  }
  if (!known(dtype)) return fail(MAMBA_INVALID, "%s: dtype %d is unknown", op, dtype);
  return MAMBA_OK;
}

constexpr int64_t kElementBytes = 4;  // at most

// Name and number of elements of a tensor.
struct Elements {
  const char* tensor;
  int64_t count;
};

template <size_t Count>
mamba_status check_fit(const char* op, const Elements (&tensors)[Count]) {
  for (const Elements& one : tensors) {
    if (product(one.count, kElementBytes) == kTooMany) {
      return fail(MAMBA_INVALID,
                  "%s: the sizes of %s are too large: a 64-bit number holds no such "
                  "number of bytes",
                  op, one.tensor);
    }
  }
  return MAMBA_OK;
}

mamba_status check_divides(const char* op, const Size& divisor, const Size& whole) {
  if (whole.value % divisor.value == 0) return MAMBA_OK;
  return fail(MAMBA_INVALID, "%s: %s %lld does not divide %s %lld", op, divisor.name,
              static_cast<long long>(divisor.value), whole.name,
              static_cast<long long>(whole.value));
}

// A float attribute.
mamba_status check_number(const char* op, const char* name, float value) {
  if (value >= 0 && value <= FLT_MAX) return MAMBA_OK;  // a NaN is not
  return fail(MAMBA_INVALID, "%s: %s is %g, expected a finite number of at least 0", op, name,
              static_cast<double>(value));
}

// The dtype of class R.
mamba_status check_residual(const char* op, const char* name, int residual, int dtype) {
  if (residual == MAMBA_FP32 || residual == dtype) return MAMBA_OK;
  return fail(MAMBA_INVALID, "%s: %s %d is neither fp32 nor dtype", op, name, residual);
}

template <size_t Count>
bool has_null(const void* const (&tensors)[Count]) {
  for (const void* tensor : tensors) {
    if (!tensor) return true;
  }
  return false;
}

}  // namespace

// --- Selective scan

mamba_status check_sizes(const mamba_selective_scan_params* params) {
  constexpr char kName[] = "selective_scan";
  if (!params) return fail(MAMBA_INVALID, "%s: params is null", kName);
  const mamba_selective_scan_params& p = *params;
  const Size sizes[] = {{"batch", p.batch},
                        {"length", p.length},
                        {"d_inner", p.d_inner},
                        {"d_state", p.d_state},
                        {"n_groups", p.n_groups}};
  if (mamba_status bad = check_positive(kName, sizes, number_of(p.dtype))) return bad;
  if (mamba_status bad = check_divides(kName, {"n_groups", p.n_groups}, {"d_inner", p.d_inner})) {
    return bad;
  }
  const Elements tensors[] = {{"u", product(p.batch, p.length, p.d_inner)},
                              {"B", product(p.batch, p.length, p.n_groups, p.d_state)},
                              {"initial_state", product(p.batch, p.d_inner, p.d_state)}};
  return check_fit(kName, tensors);
}

mamba_status check(const mamba_selective_scan_params* params) {
  if (mamba_status bad = check_sizes(params)) return bad;
  const mamba_selective_scan_params& p = *params;
  const void* const tensors[] = {p.u.data, p.delta.data, p.B.data, p.C.data,    p.A,
                                 p.D,      p.delta_bias, p.y,      p.last_state};
  if (has_null(tensors)) return fail(MAMBA_INVALID, "selective_scan: a tensor's pointer is null");
  return MAMBA_OK;
}

// --- Causal convolution

mamba_status check_sizes(const mamba_causal_conv1d_params* params) {
  constexpr char kName[] = "causal_conv1d";
  if (!params) return fail(MAMBA_INVALID, "%s: params is null", kName);
  const mamba_causal_conv1d_params& p = *params;
  const Size sizes[] = {
      {"batch", p.batch}, {"length", p.length}, {"channels", p.channels}, {"d_conv", p.d_conv}};
  if (mamba_status bad = check_positive(kName, sizes, number_of(p.dtype))) return bad;
  if (p.d_conv > kMaxTaps) {
    return fail(MAMBA_INVALID, "%s: d_conv %lld is not supported, at most %lld", kName,
                static_cast<long long>(p.d_conv), static_cast<long long>(kMaxTaps));
  }
  const Elements tensors[] = {{"x", product(p.batch, p.length, p.channels)},
                              {"weight", product(p.channels, p.d_conv)},
                              {"initial_state", product(p.batch, p.channels, p.d_conv)}};
  return check_fit(kName, tensors);
}

mamba_status check(const mamba_causal_conv1d_params* params) {
  if (mamba_status bad = check_sizes(params)) return bad;
  const mamba_causal_conv1d_params& p = *params;
  const bool lacks_state = p.d_conv > 1 && (!p.initial_state || !p.last_state);
  const void* const tensors[] = {p.x.data, p.weight, p.bias, p.y};
  if (lacks_state || has_null(tensors)) {
    return fail(MAMBA_INVALID, "causal_conv1d: a tensor's pointer is null");
  }
  return MAMBA_OK;
}

// --- State space duality

mamba_status check_sizes(const mamba_state_space_dual_params* params) {
  constexpr char kName[] = "state_space_dual";
  if (!params) return fail(MAMBA_INVALID, "%s: params is null", kName);
  const mamba_state_space_dual_params& p = *params;
  const Size sizes[] = {{"batch", p.batch},       {"length", p.length},   {"heads", p.heads},
                        {"head_dim", p.head_dim}, {"d_state", p.d_state}, {"n_groups", p.n_groups},
                        {"d_skip", p.d_skip}};
  const int dtype = number_of(p.dtype), state_dtype = number_of(p.initial_state_dtype);
  if (mamba_status bad = check_positive(kName, sizes, dtype)) return bad;
  if (mamba_status bad = check_residual(kName, "initial_state_dtype", state_dtype, dtype)) {
    return bad;
  }
  if (mamba_status bad = check_divides(kName, {"n_groups", p.n_groups}, {"heads", p.heads})) {
    return bad;
  }
  if (mamba_status bad = check_divides(kName, {"d_skip", p.d_skip}, {"head_dim", p.head_dim})) {
    return bad;
  }
  if (mamba_status bad = check_number(kName, "dt_min", p.dt_min)) return bad;
  if (mamba_status bad = check_number(kName, "dt_max", p.dt_max)) return bad;
  const Elements tensors[] = {{"x", product(p.batch, p.length, p.heads, p.head_dim)},
                              {"B", product(p.batch, p.length, p.n_groups, p.d_state)},
                              {"initial_state", product(p.batch, p.heads, p.head_dim, p.d_state)}};
  return check_fit(kName, tensors);
}

mamba_status check(const mamba_state_space_dual_params* params) {
  if (mamba_status bad = check_sizes(params)) return bad;
  const mamba_state_space_dual_params& p = *params;
  const void* const tensors[] = {p.x.data, p.dt.data, p.B.data, p.C.data,    p.A,
                                 p.D,      p.dt_bias, p.y,      p.last_state};
  if (has_null(tensors)) {
    return fail(MAMBA_INVALID, "state_space_dual: a tensor's pointer is null");
  }
  return MAMBA_OK;
}

// --- Gated RMSNorm

mamba_status check_sizes(const mamba_gated_rms_norm_params* params) {
  constexpr char kName[] = "gated_rms_norm";
  if (!params) return fail(MAMBA_INVALID, "%s: params is null", kName);
  const mamba_gated_rms_norm_params& p = *params;
  const Size sizes[] = {{"batch", p.batch},
                        {"length", p.length},
                        {"groups", p.groups},
                        {"group_width", p.group_width}};
  if (mamba_status bad = check_positive(kName, sizes, number_of(p.dtype))) return bad;
  if (mamba_status bad = check_number(kName, "epsilon", p.epsilon)) return bad;
  const Elements tensors[] = {{"x", product(p.batch, p.length, p.groups, p.group_width)}};
  return check_fit(kName, tensors);
}

mamba_status check(const mamba_gated_rms_norm_params* params) {
  if (mamba_status bad = check_sizes(params)) return bad;
  const mamba_gated_rms_norm_params& p = *params;
  const void* const tensors[] = {p.x.data, p.z.data, p.weight, p.y};
  if (has_null(tensors)) return fail(MAMBA_INVALID, "gated_rms_norm: a tensor's pointer is null");
  return MAMBA_OK;
}

// --- Whole layers

namespace {

// Name and value of what must be 1 to most.
struct Limited {
  const char* name;
  int64_t value, most;
};

// What every layer's sizes and dtype are asked, and those of a product of all rows.
template <typename Params, size_t Count>
mamba_status check_rows(const char* op, const Params& p, const Limited (&sizes)[Count]) {
  for (const Limited& size : sizes) {
    if (size.value < 1 || size.value > size.most) {
      return fail(MAMBA_INVALID, "%s: %s is %lld, expected 1 to %lld", op, size.name,
                  static_cast<long long>(size.value), static_cast<long long>(size.most));
    }
  }
  // Rows are counted in 32 bits, by cuBLAS too.
  if (p.batch * p.length > INT32_MAX) {
    return fail(MAMBA_INVALID, "%s: batch %lld times length %lld is more than %lld rows", op,
                static_cast<long long>(p.batch), static_cast<long long>(p.length),
                static_cast<long long>(INT32_MAX));
  }
  const int dtype = number_of(p.dtype);
  if (!known(dtype)) return fail(MAMBA_INVALID, "%s: dtype %d is unknown", op, dtype);
  return MAMBA_OK;
}

// What every layer's sizes and attributes are asked.
template <typename Params, size_t Count>
mamba_status check_layer(const char* op, const Params& p, const Limited (&sizes)[Count]) {
  if (mamba_status bad = check_rows(op, p, sizes)) return bad;
  const int dtype = number_of(p.dtype), hidden_dtype = number_of(p.hidden_dtype);
  if (mamba_status bad = check_residual(op, "hidden_dtype", hidden_dtype, dtype)) return bad;
  return check_number(op, "epsilon", p.epsilon);
}

// tensors: all but the convolution's state, which one tap does not have.
template <typename Params, size_t Count>
mamba_status check_layer_tensors(const char* op, const Params& p,
                                 const void* const (&tensors)[Count], const void* workspace) {
  if (has_null(tensors) || !workspace) {
    return fail(MAMBA_INVALID, "%s: a tensor's pointer, or workspace, is null", op);
  }
  if (p.d_conv > 1 && (!p.conv_state || !p.last_conv_state)) {
    return fail(MAMBA_INVALID, "%s: conv_state's pointer is null", op);
  }
  if (reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment != 0) {
    return fail(MAMBA_INVALID, "%s: workspace is not aligned to %lld bytes", op,
                static_cast<long long>(kWorkspaceAlignment));
  }
  return MAMBA_OK;
}

}  // namespace

mamba_status check_sizes(const mamba_layer_params* params) {
  if (!params) return fail(MAMBA_INVALID, "layer: params is null");
  const mamba_layer_params& p = *params;
  const Limited sizes[] = {
      {"batch", p.batch, INT32_MAX},     {"length", p.length, INT32_MAX},
      {"d_model", p.d_model, kMaxWidth}, {"d_inner", p.d_inner, kMaxWidth},
      {"d_state", p.d_state, kMaxWidth}, {"d_conv", p.d_conv, kMaxTaps},
      {"dt_rank", p.dt_rank, kMaxWidth},
  };
  if (mamba_status bad = check_layer("layer", p, sizes)) return bad;
  const Elements tensors[] = {{"recurrent_state", product(p.batch, p.d_inner, p.d_state)}};
  return check_fit("layer", tensors);
}

mamba_status check(const mamba_layer_params* params, const void* workspace) {
  if (mamba_status bad = check_sizes(params)) return bad;
  const mamba_layer_params& p = *params;
  const void* const tensors[] = {p.hidden,
                                 p.norm_weight,
                                 p.in_proj_weight,
                                 p.conv_weight,
                                 p.conv_bias,
                                 p.x_proj_weight,
                                 p.dt_proj_weight,
                                 p.dt_bias,
                                 p.A,
                                 p.D,
                                 p.out_proj_weight,
                                 p.recurrent_state,
                                 p.hidden_out,
                                 p.last_recurrent_state};
  return check_layer_tensors("layer", p, tensors, workspace);
}

mamba_status check_sizes(const mamba2_layer_params* params) {
  constexpr char kName[] = "mamba2_layer";
  if (!params) return fail(MAMBA_INVALID, "%s: params is null", kName);
  const mamba2_layer_params& p = *params;
  const Limited sizes[] = {
      {"batch", p.batch, INT32_MAX},
      {"length", p.length, INT32_MAX},
      {"d_model", p.d_model, kMaxWidth},
      {"n_groups", p.n_groups, kMaxWidth},
      {"group_heads", p.group_heads, kMaxWidth},
      {"head_dim", p.head_dim, kMaxWidth},
      {"d_state", p.d_state, kMaxWidth},
      {"d_conv", p.d_conv, kMaxTaps},
      {"d_skip", p.d_skip, kMaxWidth},
      {"n_groups * group_heads * head_dim", product(p.n_groups, p.group_heads, p.head_dim),
       kMaxWidth},
      {"n_groups * d_state", product(p.n_groups, p.d_state), kMaxWidth},
  };
  if (mamba_status bad = check_layer(kName, p, sizes)) return bad;
  if (mamba_status bad = check_divides(kName, {"d_skip", p.d_skip}, {"head_dim", p.head_dim})) {
    return bad;
  }
  const int state_dtype = number_of(p.recurrent_state_dtype);
  if (mamba_status bad =
          check_residual(kName, "recurrent_state_dtype", state_dtype, number_of(p.dtype))) {
    return bad;
  }
  if (mamba_status bad = check_number(kName, "gate_epsilon", p.gate_epsilon)) return bad;
  if (mamba_status bad = check_number(kName, "dt_min", p.dt_min)) return bad;
  if (mamba_status bad = check_number(kName, "dt_max", p.dt_max)) return bad;
  const Elements tensors[] = {
      {"recurrent_state", product(p.batch, p.n_groups, p.group_heads, p.head_dim, p.d_state)}};
  return check_fit(kName, tensors);
}

mamba_status check(const mamba2_layer_params* params, const void* workspace) {
  if (mamba_status bad = check_sizes(params)) return bad;
  const mamba2_layer_params& p = *params;
  const void* const tensors[] = {p.hidden,
                                 p.norm_weight,
                                 p.in_proj_weight,
                                 p.conv_weight,
                                 p.conv_bias,
                                 p.dt_bias,
                                 p.A,
                                 p.D,
                                 p.gate_norm_weight,
                                 p.out_proj_weight,
                                 p.recurrent_state,
                                 p.hidden_out,
                                 p.last_recurrent_state};
  return check_layer_tensors("mamba2_layer", p, tensors, workspace);
}

// --- A product with a matrix

mamba_status check_sizes(const mamba_linear_params* params) {
  constexpr char kName[] = "linear";
  if (!params) return fail(MAMBA_INVALID, "%s: params is null", kName);
  const mamba_linear_params& p = *params;
  const Limited sizes[] = {
      {"batch", p.batch, INT32_MAX},
      {"length", p.length, INT32_MAX},
      {"in_features", p.in_features, kMaxWidth},
      {"out_features", p.out_features, kMaxWidth},
  };
  if (mamba_status bad = check_rows(kName, p, sizes)) return bad;
  const Elements tensors[] = {{"x", product(p.batch, p.length, p.in_features)},
                              {"weight", product(p.in_features, p.out_features)},
                              {"y", product(p.batch, p.length, p.out_features)}};
  return check_fit(kName, tensors);
}

mamba_status check(const mamba_linear_params* params) {
  if (mamba_status bad = check_sizes(params)) return bad;
  const void* const tensors[] = {params->x, params->weight, params->y};
  if (has_null(tensors)) return fail(MAMBA_INVALID, "linear: a tensor's pointer is null");
  return MAMBA_OK;
}

}  // namespace mamba
