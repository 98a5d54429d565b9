// What both walks of state space duality share: a task's block, step sizes and decays, inputs and
// the end of an output.
#pragma once

#include <cfloat>

#include "common/cpu/kernels.h"
#include "common/cpu/sequences.h"
#include "common/cpu/simd.h"
#include "common/sizes.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr int kChunk = 16;    // steps of a chunk
constexpr int kColumns = 32;  // channels of a task, at most: their states stay in the caches

// A task's channels, all of one head.
struct DualBlock {
  int64_t batch, head, group, column;  // column: the first, counted in its head
  int count;

  int width() const { return (count + kLanes - 1) / kLanes * kLanes; }
};

// The numbers of one chunk of a block. Steps beyond the chunk's are zero.
struct DualSteps {
  alignas(64) float dt[kChunk];
  alignas(64) float decay[kChunk];  // exp(dt A + log_decay)
  alignas(64) float x[kChunk][kColumns];
  alignas(64) float y[kChunk][kColumns];  // without skip and gate
};

static inline int64_t blocks_of_head(const mamba_state_space_dual_params& p) {
  return (p.head_dim + kColumns - 1) / kColumns;
}

static inline DualBlock block_of(const mamba_state_space_dual_params& p, size_t task) {
  const int64_t index = static_cast<int64_t>(task), blocks = blocks_of_head(p);
  DualBlock block;
  block.column = index % blocks * kColumns;
  block.head = index / blocks % p.heads;
  block.batch = index / blocks / p.heads;
  block.group = block.head / (p.heads / p.n_groups);
  const int64_t left = p.head_dim - block.column;
  block.count = static_cast<int>(left < kColumns ? left : kColumns);
  return block;
}

// The number of elements of a state before the block's first.
static inline int64_t state_at(const mamba_state_space_dual_params& p, const DualBlock& block) {
  return ((block.batch * p.heads + block.head) * p.head_dim + block.column) * p.d_state;
}

// The block's first channel of a sequence of heads, at one step.
template <typename T>
static inline const typename T::Bits* channels_at(const mamba_state_space_dual_params& p,
                                                  const mamba_sequence& sequence,
                                                  const DualBlock& block, int64_t step) {
  return row<T>(sequence, block.batch, step) + block.head * p.head_dim + block.column;
}

template <typename T>
static inline typename T::Bits* output_at(const mamba_state_space_dual_params& p,
                                          const DualBlock& block, int64_t step) {
  const int64_t at = (block.batch * p.length + step) * p.heads + block.head;
  return static_cast<typename T::Bits*>(p.y) + at * p.head_dim + block.column;
}

// A decay, or a product of some, that is no normal number is 0: subnormal ones are slow. NaN stays.
static inline Vec without_subnormals(Vec decay) {
  return select((VecI)(decay < FLT_MIN), Vec{}, decay);
}

static inline Vec decay_of(Vec exponent) {
  return select((VecI)(exponent < -87.0f), Vec{}, exp(exponent));  // exp saturates there
}

// Limits leave a NaN as it is.
static inline Vec limited(Vec x, float least, float most) {
  x = select((VecI)(x < least), broadcast(least), x);
  return select((VecI)(x > most), broadcast(most), x);
}

template <int kToWrite = 0, typename Bits>
static inline void prefetch(const Bits* from, int count) {
  for (int i = 0; i < count; i += static_cast<int>(64 / sizeof(Bits))) {
    __builtin_prefetch(from + i, kToWrite);
  }
}

template <typename T>
static inline void read_steps(const mamba_state_space_dual_params& p, const DualBlock& block,
                              int64_t first, int steps, DualSteps& to) {
  float exponent[kChunk] = {};
  for (int t = 0; t < kChunk; ++t) to.dt[t] = 0.0f;
  for (int t = 0; t < steps; ++t) {
    const int64_t at = walked(p, first + t);
    to.dt[t] = load<T>(row<T>(p.dt, block.batch, at) + block.head, 1)[0] + p.dt_bias[block.head];
    if (p.log_decay) {
      exponent[t] = p.log_decay[(block.batch * p.length + at) * p.heads + block.head];
    }
    const typename T::Bits* x = channels_at<T>(p, p.x, block, at);
    if (first + t + kChunk <
        p.length) {  // rows lie too far apart for the processor to foresee them
      const int64_t next = walked(p, first + t + kChunk);
      prefetch(channels_at<T>(p, p.x, block, next), block.count);
      if (p.z.data) prefetch(channels_at<T>(p, p.z, block, next), block.count);
      prefetch<1>(output_at<T>(p, block, next), block.count);
    }
    for (int c = 0; c < block.count; c += kLanes) {
      const int count = block.count - c < kLanes ? block.count - c : kLanes;
      store<Fp32>(to.x[t] + c, load<T>(x + c, count), kLanes);
    }
  }
  for (int t = 0; t < steps; t += kLanes) {
    Vec dt = load<Fp32>(to.dt + t, kLanes);
    if (p.dt_softplus) dt = softplus(dt);
    dt = limited(dt, p.dt_min, p.dt_max);
    const Vec sum = dt * p.A[block.head] + load<Fp32>(exponent + t, kLanes);
    store<Fp32>(to.dt + t, dt, kLanes);
    store<Fp32>(to.decay + t, decay_of(sum), kLanes);
  }
}

// Skip and gate of the y of some steps, and the store.
template <typename T>
static inline void write_steps(const mamba_state_space_dual_params& p, const DualBlock& block,
                               int64_t first, int steps, const DualSteps& from) {
  alignas(64) float D[kColumns];
  const int64_t channels_a_number = p.head_dim / p.d_skip;
  for (int c = 0; c < block.width(); ++c) {
    const int64_t column = block.column + (c < block.count ? c : 0);
    D[c] = p.D[block.head * p.d_skip + column / channels_a_number];
  }
  for (int t = 0; t < steps; ++t) {
    const int64_t at = walked(p, first + t);
    typename T::Bits* out = static_cast<typename T::Bits*>(p.y) +
                            ((block.batch * p.length + at) * p.heads + block.head) * p.head_dim +
                            block.column;
    const typename T::Bits* z = p.z.data ? channels_at<T>(p, p.z, block, at) : nullptr;
    for (int c = 0; c < block.count; c += kLanes) {
      const int count = block.count - c < kLanes ? block.count - c : kLanes;
      Vec y = load<Fp32>(from.y[t] + c, kLanes);
      y += load<Fp32>(from.x[t] + c, kLanes) * load<Fp32>(D + c, kLanes);
      if (z) y *= silu(load<T>(z + c, count));
      store<T>(out + c, y, count);
    }
  }
}

}  // namespace MAMBA_ISA
}  // namespace mamba
