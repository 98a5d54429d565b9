// The short convolution of a layer, alike for every layer and on every device.
#pragma once

#include "mamba_kernels.h"

namespace mamba {

// Of x, `channels` of the columns that in_proj made, into y, with SiLU.
template <typename LayerParams>
mamba_causal_conv1d_params describe_convolution(const LayerParams& p, int64_t channels,
                                                mamba_sequence x, void* y) {
  mamba_causal_conv1d_params c = {};
  c.batch = p.batch;
  c.length = p.length;
  c.channels = channels;
  c.d_conv = p.d_conv;
  c.dtype = p.dtype;
  c.silu = 1;
  c.x = x;
  c.weight = p.conv_weight;
  c.bias = p.conv_bias;
  c.initial_state = p.conv_state;
  c.y = y;
  c.last_state = p.last_conv_state;
  return c;
}

}  // namespace mamba
