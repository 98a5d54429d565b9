// State space duality row by row: lanes are states, which lie side by side in memory, so that a
// step reads and writes each state once.
#pragma once

#include "state_space_dual/cpu/block.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr int kRowsAtOnce = 4;  // channels whose steps share what is read of B and C

// One step of K rows of states, `stride` apart; after may be before. y[k] = h_k C.
template <typename T, typename From, typename To, int K>
static inline void step_rows(const typename T::Bits* B, const typename T::Bits* C, int64_t d_state,
                             const typename From::Bits* before, typename To::Bits* after,
                             float decay, const float* dt_x, float* y) {
  Vec sums[K] = {};
  const auto advance = [&](int64_t n, int count) {
    const Vec b = load<T>(B + n, count), c = load<T>(C + n, count);
    for (int k = 0; k < K; ++k) {
      const Vec h = decay * load<From>(before + k * d_state + n, count) + dt_x[k] * b;
      store<To>(after + k * d_state + n, h, count);
      sums[k] += h * c;
    }
  };
  int64_t n = 0;
  for (; n + kLanes <= d_state; n += kLanes) advance(n, kLanes);
  if (n < d_state) advance(n, static_cast<int>(d_state - n));
  for (int k = 0; k < K; ++k) y[k] = sum(sums[k]);
}

// K rows through a chunk. Between steps states are fp32: `kept` holds them where S is not, else
// last_state does.
template <typename T, typename S, int K>
static inline void walk_rows(const mamba_state_space_dual_params& p, const DualBlock& block,
                             int64_t first, int steps, int c, float* kept, DualSteps& numbers) {
  const int64_t N = p.d_state, at = state_at(p, block) + c * N;
  auto* last = static_cast<typename S::Bits*>(p.last_state) + at;
  const auto* initial =
      p.initial_state ? static_cast<const typename S::Bits*>(p.initial_state) + at : last;
  if (!p.initial_state && first == 0) memset(last, 0, K * N * sizeof(*last));
  for (int t = 0; t < steps; ++t) {
    const int64_t step = walked(p, first + t);
    const typename T::Bits* B = row<T>(p.B, block.batch, step) + block.group * N;
    const typename T::Bits* C = row<T>(p.C, block.batch, step) + block.group * N;
    float dt_x[K];
    for (int k = 0; k < K; ++k) dt_x[k] = numbers.dt[t] * numbers.x[t][c + k];
    const float decay = numbers.decay[t];
    float* y = numbers.y[t] + c;
    const bool is_first = first + t == 0, is_last = first + t == p.length - 1;
    if constexpr (sizeof(typename S::Bits) == sizeof(float)) {
      step_rows<T, S, S, K>(B, C, N, is_first ? initial : last, last, decay, dt_x, y);
    } else if (is_first && is_last) {
      step_rows<T, S, S, K>(B, C, N, initial, last, decay, dt_x, y);
    } else if (is_first) {
      step_rows<T, S, Fp32, K>(B, C, N, initial, kept + c * N, decay, dt_x, y);
    } else if (is_last) {
      step_rows<T, Fp32, S, K>(B, C, N, kept + c * N, last, decay, dt_x, y);
    } else {
      step_rows<T, Fp32, Fp32, K>(B, C, N, kept + c * N, kept + c * N, decay, dt_x, y);
    }
  }
}

static int64_t rows_scratch_bytes(const mamba_state_space_dual_params& p) {
  const bool keeps = p.initial_state_dtype != MAMBA_FP32 && p.length > 1;
  return keeps ? product(kColumns, p.d_state, sizeof(float)) : 0;
}

template <typename T, typename S>
static void walk_in_rows(const mamba_state_space_dual_params& p, const DualBlock& block,
                         float* scratch) {
  DualSteps numbers;
  for (int64_t first = 0; first < p.length; first += kChunk) {
    const int steps = static_cast<int>(p.length - first < kChunk ? p.length - first : kChunk);
    read_steps<T>(p, block, first, steps, numbers);
    int c = 0;
    for (; c + kRowsAtOnce <= block.count; c += kRowsAtOnce) {
      walk_rows<T, S, kRowsAtOnce>(p, block, first, steps, c, scratch, numbers);
    }
    for (; c < block.count; ++c) walk_rows<T, S, 1>(p, block, first, steps, c, scratch, numbers);
    write_steps<T>(p, block, first, steps, numbers);
  }
}

}  // namespace MAMBA_ISA
}  // namespace mamba
