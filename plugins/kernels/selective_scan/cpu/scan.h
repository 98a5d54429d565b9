// Selective scan on a CPU.
//
// Long sequences: lanes are channels. A task owns some vectors of channels of one sequence and
// walks it in tiles of time; within a tile each state n runs through all steps, so that its decay's
// exponentials are independent of one another and the state stays in a register. States and A are
// transposed at the ends.
//
// A few steps (decode), or very many states: lanes are states, which lie side by side in memory, so
// nothing is transposed.
#pragma once

#include "common/cpu/kernels.h"
#include "common/cpu/sequences.h"
#include "common/cpu/simd.h"
#include "common/sizes.h"
#include "mamba_kernels.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr int kTile = 32;         // steps a tile: dt, dt u and y of a vector stay in the L1 cache
constexpr int kVectorsATask = 4;  // a row of a task's channels is then 256 bytes with AVX-512
constexpr int64_t kFewSteps = 4;  // up to here transposing the state costs more than the steps
// Beyond, a task's states in lanes would leave the caches, and ask for memory far beyond that of
// the tensors.
constexpr int64_t kMostStatesInLanes = 16384;

// Where a task's channels are.
struct ScanBlock {
  int64_t batch, group, first, count;  // first is counted over all groups
};

// dt and dt u of one vector of channels at one step.
template <typename T>
static inline void step_inputs(const mamba_selective_scan_params& p, const ScanBlock& block,
                               int64_t step, int64_t channel, int count, Vec& dt, Vec& u) {
  dt = load<T>(row<T>(p.delta, block.batch, step) + channel, count) +
       load<Fp32>(p.delta_bias + channel, count);
  if (p.delta_softplus) dt = softplus(dt);
  u = load<T>(row<T>(p.u, block.batch, step) + channel, count);
}

// Skip and gate, and the store.
template <typename T>
static inline void step_output(const mamba_selective_scan_params& p, const ScanBlock& block,
                               int64_t step, int64_t channel, int count, Vec y, Vec u) {
  y += u * load<Fp32>(p.D + channel, count);
  if (p.z.data) y *= silu(load<T>(row<T>(p.z, block.batch, step) + channel, count));
  typename T::Bits* out = static_cast<typename T::Bits*>(p.y);
  store<T>(out + (block.batch * p.length + step) * p.d_inner + channel, y, count);
}

// B or C of one step and group, as fp32.
template <typename T>
static inline void widen_row(const mamba_selective_scan_params& p, const mamba_sequence& sequence,
                             const ScanBlock& block, int64_t step, float* to) {
  widen<T>(row<T>(sequence, block.batch, step) + block.group * p.d_state, to, p.d_state);
}

// A, and with exact zero-order hold what divides by it: (exp(dt A) - 1) / A is dt for an A next to
// 0, and for the number that then stands for it.
struct Rates {
  Vec a, inverse;
};
template <bool kExactZoh>
static inline Rates rates(Vec a) {
  if (!kExactZoh) return {a, Vec{}};
  a = select((VecI)(a * a < 1e-38f), broadcast(-1e-19f), a);
  return {a, 1.0f / a};
}

// A step of a state. entering, what is multiplied with B, is dt u; with exact zero-order hold it is
// u, and (exp(dt A) - 1) / A takes the place of dt.
template <bool kExactZoh>
static inline Vec next_state(const Rates& rates, Vec state, Vec dt, Vec entering, Vec B) {
  if (!kExactZoh) return exp(dt * rates.a) * state + entering * B;
  const Exponential e = exponential(dt * rates.a);
  return (e.m + 1.0f) * e.scale * state + exp_minus_1(e) * rates.inverse * entering * B;
}

// K states of one vector of channels through a tile. y accumulates over the states, in their order.
template <int K, bool kExactZoh>
static inline void run_states(const float* A, float* h, const float* B, const float* C,
                              int64_t d_state, const Vec* dt, const Vec* entering, Vec* y,
                              int steps) {
  Rates a[K];
  Vec state[K];
  for (int k = 0; k < K; ++k) {
    a[k] = rates<kExactZoh>(load<Fp32>(A + k * kLanes, kLanes));
    state[k] = load<Fp32>(h + k * kLanes, kLanes);
  }
  for (int t = 0; t < steps; ++t) {
    Vec sum = y[t];
    for (int k = 0; k < K; ++k) {
      const Vec b = broadcast(B[t * d_state + k]);
      state[k] = next_state<kExactZoh>(a[k], state[k], dt[t], entering[t], b);
      sum += state[k] * C[t * d_state + k];
    }
    y[t] = sum;
  }
  for (int k = 0; k < K; ++k) store<Fp32>(h + k * kLanes, state[k], kLanes);
}

// (channels, d_state) <-> (vector, d_state, lanes); lanes beyond the channels are zero.
static inline void to_lanes(const float* from, float* to, int64_t channels, int64_t d_state) {
  for (int64_t c = 0; c < channels; ++c) {
    float* lane = to + (c / kLanes) * d_state * kLanes + c % kLanes;
    for (int64_t n = 0; n < d_state; ++n) lane[n * kLanes] = from[c * d_state + n];
  }
}

static inline void from_lanes(const float* from, float* to, int64_t channels, int64_t d_state) {
  for (int64_t c = 0; c < channels; ++c) {
    const float* lane = from + (c / kLanes) * d_state * kLanes + c % kLanes;
    for (int64_t n = 0; n < d_state; ++n) to[c * d_state + n] = lane[n * kLanes];
  }
}

// Whether lanes are states.
static inline bool walks_states(const mamba_selective_scan_params& p) {
  return (p.length <= kFewSteps && p.d_state % kLanes == 0) || p.d_state > kMostStatesInLanes;
}

// Scratch memory that a task needs: B and C of a step, or A and h in lanes, and B and C of a tile.
static int64_t scan_scratch_bytes(const mamba_selective_scan_params& p) {
  const int64_t rows = walks_states(p) ? 2 : 2 * (kVectorsATask * kLanes + kTile);
  return product(rows, p.d_state, sizeof(float));
}

template <typename T, bool kExactZoh>
static void scan_long(const mamba_selective_scan_params& p, const ScanBlock& block,
                      float* scratch) {
  const int64_t N = p.d_state;
  const int64_t vector_size = N * kLanes;
  float* A = scratch;
  float* h = A + kVectorsATask * vector_size;
  float* B = h + kVectorsATask * vector_size;
  float* C = B + kTile * N;
  memset(scratch, 0, 2 * kVectorsATask * vector_size * sizeof(float));
  to_lanes(p.A + block.first * N, A, block.count, N);
  if (p.initial_state) {
    to_lanes(p.initial_state + (block.batch * p.d_inner + block.first) * N, h, block.count, N);
  }

  for (int64_t start = 0; start < p.length; start += kTile) {
    const int steps = static_cast<int>(p.length - start < kTile ? p.length - start : kTile);
    for (int t = 0; t < steps; ++t) {
      widen_row<T>(p, p.B, block, walked(p, start + t), B + t * N);
      widen_row<T>(p, p.C, block, walked(p, start + t), C + t * N);
    }
    for (int64_t c = 0; c < block.count; c += kLanes) {
      const int count = static_cast<int>(block.count - c < kLanes ? block.count - c : kLanes);
      const int64_t channel = block.first + c;
      Vec dt[kTile], entering[kTile], u[kTile], y[kTile];
      for (int t = 0; t < steps; ++t) {
        step_inputs<T>(p, block, walked(p, start + t), channel, count, dt[t], u[t]);
        entering[t] = kExactZoh ? u[t] : dt[t] * u[t];
        y[t] = Vec{};
      }
      const int64_t vector = (c / kLanes) * vector_size;
      int64_t n = 0;
      for (; n + 4 <= N; n += 4) {
        const int64_t at = vector + n * kLanes;
        run_states<4, kExactZoh>(A + at, h + at, B + n, C + n, N, dt, entering, y, steps);
      }
      for (; n < N; ++n) {
        const int64_t at = vector + n * kLanes;
        run_states<1, kExactZoh>(A + at, h + at, B + n, C + n, N, dt, entering, y, steps);
      }
      for (int t = 0; t < steps; ++t) {
        step_output<T>(p, block, walked(p, start + t), channel, count, y[t], u[t]);
      }
    }
  }
  from_lanes(h, p.last_state + (block.batch * p.d_inner + block.first) * N, block.count, N);
}

// One channel, one step: lanes are states. Without a tail d_state is a multiple of kLanes.
template <bool kHasTail, bool kExactZoh>
static inline float step_channel(const float* A, const float* B, const float* C,
                                 const float* before, float* after, int64_t d_state, float dt,
                                 float entering) {
  Vec y = {};
  for (int64_t n = 0; n < d_state; n += kLanes) {
    const int count = kHasTail && d_state - n < kLanes ? static_cast<int>(d_state - n) : kLanes;
    const Rates a = rates<kExactZoh>(load<Fp32>(A + n, count));
    const Vec state = next_state<kExactZoh>(a, load<Fp32>(before + n, count), broadcast(dt),
                                            broadcast(entering), load<Fp32>(B + n, count));
    store<Fp32>(after + n, state, count);
    y += state * load<Fp32>(C + n, count);
  }
  return sum(y);
}

template <typename T, bool kHasTail, bool kExactZoh>
static void scan_states(const mamba_selective_scan_params& p, const ScanBlock& block,
                        float* scratch) {
  const int64_t N = p.d_state;
  float* B = scratch;
  float* C = B + N;
  const int64_t state_at = (block.batch * p.d_inner + block.first) * N;
  if (!p.initial_state) memset(p.last_state + state_at, 0, block.count * N * sizeof(float));
  for (int64_t step = 0; step < p.length; ++step) {
    const int64_t t = walked(p, step);
    widen_row<T>(p, p.B, block, t, B);
    widen_row<T>(p, p.C, block, t, C);
    const float* before = step == 0 && p.initial_state ? p.initial_state : p.last_state;
    for (int64_t c = 0; c < block.count; c += kLanes) {
      const int count = static_cast<int>(block.count - c < kLanes ? block.count - c : kLanes);
      const int64_t channel = block.first + c;
      Vec dt, u;
      step_inputs<T>(p, block, t, channel, count, dt, u);
      const Vec entering = kExactZoh ? u : dt * u;
      // A vector's element of a number that is not constant goes through memory each time.
      float dts[kLanes], enterings[kLanes], ys[kLanes] = {};
      store<Fp32>(dts, dt, kLanes);
      store<Fp32>(enterings, entering, kLanes);
      for (int i = 0; i < count; ++i) {
        const int64_t at = state_at + (c + i) * N;
        ys[i] = step_channel<kHasTail, kExactZoh>(p.A + (channel + i) * N, B, C, before + at,
                                                  p.last_state + at, N, dts[i], enterings[i]);
      }
      step_output<T>(p, block, t, channel, count, load<Fp32>(ys, kLanes), u);
    }
  }
}

template <typename T, bool kExactZoh>
static void scan_block(const mamba_selective_scan_params& p, const ScanBlock& block,
                       float* scratch) {
  if (!walks_states(p)) {
    scan_long<T, kExactZoh>(p, block, scratch);
  } else if (p.d_state % kLanes == 0) {
    scan_states<T, false, kExactZoh>(p, block, scratch);
  } else {
    scan_states<T, true, kExactZoh>(p, block, scratch);
  }
}

// False where there is no memory to work in.
template <typename T>
static bool scan_task(const mamba_selective_scan_params& p, size_t task) {
  const int64_t channels = p.d_inner / p.n_groups;
  const int64_t size = kVectorsATask * kLanes;
  const int64_t blocks = (channels + size - 1) / size;
  const int64_t index = static_cast<int64_t>(task);
  const int64_t in_group = (index % blocks) * size;
  ScanBlock block;
  block.group = index / blocks % p.n_groups;
  block.batch = index / blocks / p.n_groups;
  block.first = block.group * channels + in_group;
  block.count = channels - in_group < size ? channels - in_group : size;

  // A small model's lies on the stack: 16 KiB of it is d_state 16 with AVX-512.
  const Scratch scratch(scan_scratch_bytes(p));
  if (!scratch.data()) return false;
  if (p.exact_zoh) {
    scan_block<T, true>(p, block, scratch.data());
  } else {
    scan_block<T, false>(p, block, scratch.data());
  }
  return true;
}

static size_t scan_tasks(const mamba_selective_scan_params& p) {
  const int64_t channels = p.d_inner / p.n_groups;
  const int64_t size = kVectorsATask * kLanes;
  return static_cast<size_t>(p.batch * p.n_groups * ((channels + size - 1) / size));
}

static void run_scan_task(void* context, size_t task) {
  ScanCall& call = *static_cast<ScanCall*>(context);
  if (__atomic_load_n(&call.lacks_memory, __ATOMIC_RELAXED)) return;
  const mamba_selective_scan_params& p = call.params;
  bool done = false;
  switch (p.dtype) {
    case MAMBA_FP32:
      done = scan_task<Fp32>(p, task);
      break;
    case MAMBA_FP16:
      done = scan_task<Fp16>(p, task);
      break;
    case MAMBA_BF16:
      done = scan_task<Bf16>(p, task);
      break;
  }
  if (!done) __atomic_store_n(&call.lacks_memory, 1, __ATOMIC_RELAXED);
}

}  // namespace MAMBA_ISA
}  // namespace mamba
