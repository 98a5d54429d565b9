// Causal depthwise convolution on a CPU: lanes are channels, a task owns some vectors of one
// sequence.
#pragma once

#include "common/checks.h"
#include "common/cpu/simd.h"
#include "mamba_kernels.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr int kConvVectors = 4;  // vectors of channels a task

// Element (channel, k) of the state: the step k - (d_conv - 1) before the walk's first.
template <typename T>
static inline float state_at(const mamba_causal_conv1d_params& p, int64_t batch, int64_t channel,
                             int64_t k) {
  const typename T::Bits* from = static_cast<const typename T::Bits*>(p.initial_state);
  return load<T>(from + (batch * p.channels + channel) * (p.d_conv - 1) + k, 1)[0];
}

// Inputs of one vector of channels at a step of the walk; negative steps lie in the state.
template <typename T>
static inline Vec input_at(const mamba_causal_conv1d_params& p, int64_t batch, int64_t step,
                           int64_t channel, int count) {
  if (step < 0) {
    Vec x = {};
    for (int i = 0; i < count; ++i) x[i] = state_at<T>(p, batch, channel + i, p.d_conv - 1 + step);
    return x;
  }
  const int64_t t = p.reverse ? p.length - 1 - step : step;
  const typename T::Bits* data = static_cast<const typename T::Bits*>(p.x.data);
  return load<T>(data + batch * p.x.batch_stride + t * p.x.step_stride + channel, count);
}

template <typename T>
static void conv_vector(const mamba_causal_conv1d_params& p, int64_t batch, int64_t channel,
                        int count) {
  const int64_t taps = p.d_conv;
  Vec weight[kMaxTaps] = {};
  for (int64_t k = 0; k < taps; ++k) {
    for (int i = 0; i < count; ++i) weight[k][i] = p.weight[(channel + i) * taps + k];
  }
  // The last d_conv - 1 inputs and the current one, in a ring.
  Vec ring[kMaxTaps];
  for (int64_t k = 0; k < taps - 1; ++k) {
    ring[k] = input_at<T>(p, batch, k - (taps - 1), channel, count);
  }
  const Vec bias = load<Fp32>(p.bias + channel, count);
  typename T::Bits* y =
      static_cast<typename T::Bits*>(p.y) + batch * p.length * p.channels + channel;
  int64_t oldest = 0;
  for (int64_t step = 0; step < p.length; ++step) {
    int64_t newest = oldest + taps - 1;
    if (newest >= taps) newest -= taps;
    ring[newest] = input_at<T>(p, batch, step, channel, count);
    Vec out = bias;
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t slot = oldest + k >= taps ? oldest + k - taps : oldest + k;
      out += weight[k] * ring[slot];
    }
    if (p.silu) out = silu(out);
    store<T>(y + (p.reverse ? p.length - 1 - step : step) * p.channels, out, count);
    oldest = oldest + 1 == taps ? 0 : oldest + 1;
  }
  // Inputs are exact in T, so the state is stored as it came. It may share the initial state's
  // memory: all of that has been read by now, for this task's channels.
  typename T::Bits* last = static_cast<typename T::Bits*>(p.last_state);
  for (int64_t k = 0; k < taps - 1; ++k) {
    const int64_t slot = oldest + k >= taps ? oldest + k - taps : oldest + k;
    for (int i = 0; i < count; ++i) {
      Vec one = broadcast(ring[slot][i]);
      store<T>(last + (batch * p.channels + channel + i) * (taps - 1) + k, one, 1);
    }
  }
}

static size_t conv_tasks(const mamba_causal_conv1d_params& p) {
  const int64_t size = kConvVectors * kLanes;
  return static_cast<size_t>(p.batch * ((p.channels + size - 1) / size));
}

template <typename T>
static void conv_task(const mamba_causal_conv1d_params& p, size_t task) {
  const int64_t size = kConvVectors * kLanes;
  const int64_t blocks = (p.channels + size - 1) / size;
  const int64_t batch = static_cast<int64_t>(task) / blocks;
  const int64_t first = static_cast<int64_t>(task) % blocks * size;
  const int64_t end = first + size < p.channels ? first + size : p.channels;
  for (int64_t channel = first; channel < end; channel += kLanes) {
    conv_vector<T>(p, batch, channel,
                   static_cast<int>(end - channel < kLanes ? end - channel : kLanes));
  }
}

static void run_conv_task(void* context, size_t task) {
  const mamba_causal_conv1d_params& p = *static_cast<const mamba_causal_conv1d_params*>(context);
  switch (p.dtype) {
    case MAMBA_FP32:
      return conv_task<Fp32>(p, task);
    case MAMBA_FP16:
      return conv_task<Fp16>(p, task);
    case MAMBA_BF16:
      return conv_task<Bf16>(p, task);
  }
}

}  // namespace MAMBA_ISA
}  // namespace mamba
