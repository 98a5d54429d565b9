// The operators of a layer of Mamba-1, over what lies in its workspace: alike on every device.
#pragma once

#include "layer/convolution.h"
#include "layer/parts.h"
#include "mamba_kernels.h"

namespace mamba {

// Of what x_proj makes: dt, B, C.
inline int64_t projected_width(const mamba_layer_params& p) { return p.dt_rank + 2 * p.d_state; }

// What the scan reads and writes: rows of u and z (in_proj's, behind x), of x_proj's and dt_proj's.
struct MambaScan {
  const void *u, *xz, *projected, *delta;
  void* y;
};

inline mamba_selective_scan_params describe_scan(const mamba_layer_params& p, const MambaScan& of) {
  const int64_t width = projected_width(p);
  const auto columns = [&p](const void* data, int64_t first, int64_t stride) {
    return slice(data, first, stride, p.length, p.dtype);
  };
  mamba_selective_scan_params s = {};
  s.batch = p.batch;
  s.length = p.length;
  s.d_inner = p.d_inner;
  s.d_state = p.d_state;
  s.n_groups = 1;
  s.dtype = p.dtype;
  s.delta_softplus = 1;
  s.u = columns(of.u, 0, p.d_inner);
  s.delta = columns(of.delta, 0, p.d_inner);
  s.z = columns(of.xz, p.d_inner, 2 * p.d_inner);
  s.B = columns(of.projected, p.dt_rank, width);
  s.C = columns(of.projected, p.dt_rank + p.d_state, width);
  s.A = p.A;
  s.D = p.D;
  s.delta_bias = p.dt_bias;
  s.initial_state = p.recurrent_state;
  s.y = of.y;
  s.last_state = p.last_recurrent_state;
  return s;
}

// Of the first half of the columns that in_proj made, into u.
inline mamba_causal_conv1d_params describe_convolution(const mamba_layer_params& p, const void* xz,
                                                       void* u) {
  return describe_convolution(p, p.d_inner, slice(xz, 0, 2 * p.d_inner, p.length, p.dtype), u);
}

}  // namespace mamba
