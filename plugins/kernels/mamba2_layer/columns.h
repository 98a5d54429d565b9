// What in_proj of a layer of Mamba-2 makes.
#pragma once

#include "mamba_kernels.h"

namespace mamba {

// Where the columns begin, and how many there are: z, x, B, C, dt.
struct Mamba2Columns {
  int64_t x, B, C, dt, all;
  int64_t heads, d_inner, channels;  // channels: of the convolution, over x, B and C

  explicit Mamba2Columns(const mamba2_layer_params& p) {
    heads = p.n_groups * p.group_heads;
    d_inner = heads * p.head_dim;
    x = d_inner;
    B = x + d_inner;
    C = B + p.n_groups * p.d_state;
    dt = C + p.n_groups * p.d_state;
    all = dt + heads;
    channels = dt - x;
  }
};

}  // namespace mamba
