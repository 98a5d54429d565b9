// The operators of a layer of Mamba-2, over what lies in its workspace: alike on every device.
#pragma once

#include "layer/convolution.h"
#include "layer/parts.h"
#include "mamba2_layer/columns.h"
#include "mamba_kernels.h"

namespace mamba {

// What state space duality reads: x, B and C, which may lie elsewhere than z and dt.
struct Mamba2Dual {
  const void *mixed, *in;                  // x, B and C; z and dt
  int64_t first, mixed_stride, in_stride;  // the column of x in mixed; numbers from row to row
  void *y, *workspace;
};

inline mamba_state_space_dual_params describe_dual(const mamba2_layer_params& p,
                                                   const Mamba2Dual& d) {
  const Mamba2Columns at(p);
  mamba_state_space_dual_params s = {};
  s.batch = p.batch;
  s.length = p.length;
  s.heads = at.heads;
  s.head_dim = p.head_dim;
  s.d_state = p.d_state;
  s.n_groups = p.n_groups;
  s.d_skip = p.d_skip;
  s.dtype = p.dtype;
  s.initial_state_dtype = p.recurrent_state_dtype;
  s.dt_softplus = 1;
  s.dt_min = p.dt_min;
  s.dt_max = p.dt_max;
  s.x = slice(d.mixed, d.first, d.mixed_stride, p.length, p.dtype);
  s.B = slice(d.mixed, d.first + at.B - at.x, d.mixed_stride, p.length, p.dtype);
  s.C = slice(d.mixed, d.first + at.C - at.x, d.mixed_stride, p.length, p.dtype);
  s.dt = slice(d.in, at.dt, d.in_stride, p.length, p.dtype);
  s.A = p.A;
  s.D = p.D;
  s.dt_bias = p.dt_bias;
  s.initial_state = p.recurrent_state;
  s.y = d.y;
  s.last_state = p.last_recurrent_state;
  return s;
}

// Of the columns x, B and C of in, what in_proj made, into mixed.
inline mamba_causal_conv1d_params describe_convolution(const mamba2_layer_params& p, const void* in,
                                                       void* mixed) {
  const Mamba2Columns at(p);
  return describe_convolution(p, at.channels, slice(in, at.x, at.all, p.length, p.dtype), mixed);
}

// Of y behind the gate z, the first columns of in, into normed.
inline mamba_gated_rms_norm_params describe_gated_norm(const mamba2_layer_params& p, const void* y,
                                                       const void* in, void* normed) {
  const Mamba2Columns at(p);
  mamba_gated_rms_norm_params n = {};
  n.batch = p.batch;
  n.length = p.length;
  n.groups = p.n_groups;
  n.group_width = at.d_inner / p.n_groups;
  n.dtype = p.dtype;
  n.epsilon = p.gate_epsilon;
  n.x = slice(y, 0, at.d_inner, p.length, p.dtype);
  n.z = slice(in, 0, at.all, p.length, p.dtype);
  n.weight = p.gate_norm_weight;
  n.y = normed;
  return n;
}

}  // namespace mamba
