// Causal depthwise convolution on a CPU: lanes are channels, a task owns some vectors of one
// sequence.
#pragma once

#include "common/checks.h"
#include "common/cpu/sequences.h"
#include "common/cpu/simd.h"
#include "mamba_kernels.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr int kConvVectors = 4;  // vectors of channels a task

// Rows of one vector of channels as columns: of the weight, or of a state, whose column k is the
// step k - (d_conv - 1) before the walk's first. kColumns: their number, or 0.
template <typename T, int kColumns>
static inline void load_columns(const typename T::Bits* from, int64_t columns, int count, Vec* to) {
  float rows[kLanes * kMaxTaps], lanes[kLanes] = {};
  widen<T>(from, rows, count * columns);
  if (kColumns && count == kLanes) {  // numbers that compilers know: they shuffle registers
    for (int k = 0; k < kColumns; ++k) {
      for (int i = 0; i < kLanes; ++i) lanes[i] = rows[i * kColumns + k];
      to[k] = load<Fp32>(lanes, kLanes);
    }
    return;
  }
  for (int64_t k = 0; k < columns; ++k) {
    for (int i = 0; i < count; ++i) lanes[i] = rows[i * columns + k];
    to[k] = load<Fp32>(lanes, kLanes);
  }
}

template <typename T, int kColumns>
static inline void store_columns(const Vec* from, int64_t columns, int count,
                                 typename T::Bits* to) {
  float rows[kLanes * kMaxTaps], lanes[kLanes];
  if (kColumns && count == kLanes) {
    for (int k = 0; k < kColumns; ++k) {
      store<Fp32>(lanes, from[k], kLanes);
      for (int i = 0; i < kLanes; ++i) rows[i * kColumns + k] = lanes[i];
    }
  } else {
    for (int64_t k = 0; k < columns; ++k) {
      store<Fp32>(lanes, from[k], kLanes);
      for (int i = 0; i < count; ++i) rows[i * columns + k] = lanes[i];
    }
  }
  narrow<T>(rows, to, count * columns);
}

// kTaps: d_conv, whose inputs then stay in registers; 0 for any.
template <typename T, int kTaps>
static void conv_vector(const mamba_causal_conv1d_params& p, int64_t batch, int64_t channel,
                        int count) {
  constexpr int kStates = kTaps ? kTaps - 1 : 0;
  const int64_t taps = kTaps ? kTaps : p.d_conv;
  Vec weight[kTaps ? kTaps : kMaxTaps];
  load_columns<Fp32, kTaps>(p.weight + channel * taps, taps, count, weight);
  // The last d_conv - 1 inputs and the current one, oldest first.
  Vec inputs[kTaps ? kTaps : kMaxTaps];
  const int64_t at = (batch * p.channels + channel) * (taps - 1);
  load_columns<T, kStates>(static_cast<const typename T::Bits*>(p.initial_state) + at, taps - 1,
                           count, inputs);
  const Vec bias = load<Fp32>(p.bias + channel, count);
  typename T::Bits* y =
      static_cast<typename T::Bits*>(p.y) + batch * p.length * p.channels + channel;
  for (int64_t step = 0; step < p.length; ++step) {
    const int64_t t = walked(p, step);
    inputs[taps - 1] = load<T>(row<T>(p.x, batch, t) + channel, count);
    Vec out = bias;
    for (int64_t k = 0; k < taps; ++k) out += weight[k] * inputs[k];
    if (p.silu) out = silu(out);
    store<T>(y + t * p.channels, out, count);
    for (int64_t k = 0; k < taps - 1; ++k) inputs[k] = inputs[k + 1];
  }
  // Inputs are exact in T, so the state is stored as it came. It may share the initial state's
  // memory: all of that has been read by now, for this task's channels.
  store_columns<T, kStates>(inputs, taps - 1, count,
                            static_cast<typename T::Bits*>(p.last_state) + at);
}

// One step of a task's channels: rows of weights and states as they lie in memory. Of loops this
// plain, compilers make shuffles of registers; turning them into columns takes eight times as long.
template <typename T, int kTaps>
static void conv_step(const mamba_causal_conv1d_params& p, int64_t batch, int64_t channel,
                      int count) {
  constexpr int kStates = kTaps - 1, kMost = kConvVectors * kLanes;
  float x[kMost], y[kMost], before[kMost * kStates], after[kMost * kStates];
  const int64_t at = (batch * p.channels + channel) * kStates;
  widen<T>(row<T>(p.x, batch, 0) + channel, x, count);
  widen<T>(static_cast<const typename T::Bits*>(p.initial_state) + at, before, count * kStates);
  const float* weight = p.weight + channel * kTaps;
  const float* bias = p.bias + channel;
  for (int c = 0; c < count; ++c) {
    float out = bias[c];
    for (int k = 0; k < kStates; ++k) out += weight[c * kTaps + k] * before[c * kStates + k];
    y[c] = out + weight[c * kTaps + kStates] * x[c];
    for (int k = 0; k < kStates - 1; ++k) after[c * kStates + k] = before[c * kStates + k + 1];
    after[c * kStates + kStates - 1] = x[c];
  }
  typename T::Bits* to = static_cast<typename T::Bits*>(p.y) + batch * p.channels + channel;
  for (int c = 0; c < count; c += kLanes) {
    const int here = count - c < kLanes ? count - c : kLanes;
    const Vec out = load<Fp32>(y + c, here);
    store<T>(to + c, p.silu ? silu(out) : out, here);
  }
  // All of the initial state, whose memory this may be, has been read.
  narrow<T>(after, static_cast<typename T::Bits*>(p.last_state) + at, count * kStates);
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
  if (p.length == 1 && p.d_conv == 4) {
    return conv_step<T, 4>(p, batch, first, static_cast<int>(end - first));
  }
  for (int64_t channel = first; channel < end; channel += kLanes) {
    const int count = static_cast<int>(end - channel < kLanes ? end - channel : kLanes);
    if (p.d_conv == 4) {  // that of published models
      conv_vector<T, 4>(p, batch, channel, count);
    } else {
      conv_vector<T, 0>(p, batch, channel, count);
    }
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
