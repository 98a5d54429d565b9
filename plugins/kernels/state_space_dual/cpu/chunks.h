// State space duality in chunks of steps, as products of matrices (arXiv:2405.21060, section 6): of
// a head with P channels and N states, a step costs 2 N P multiplications and some, the recurrence
// 3 N P. With h before the chunk, and L[t, j] the product of the decays of the steps j + 1 to t,
//
//   y = (L * C B^T) (dt x) + L[:, before] C h,   h = L[last, before] h + B^T (L[last] dt x)
//
// L is made of products alone: no sum of exponents cancels, none overflows, and a decay of 0 cuts
// what was before it. C B^T, the scores, is computed before, for all heads of a group (scores.h).
//
// Lanes are channels, so states are transposed at the ends of the sequence.
#pragma once

#include "state_space_dual/cpu/block.h"
#include "state_space_dual/cpu/scores.h"

namespace mamba {
namespace MAMBA_ISA {

// A product's tile of the result stays in registers: rows by vectors.
constexpr int kTileRows = kLanes == 16 ? 8 : 4;
constexpr int kTileVectors = 2;
constexpr int kPanel = 64;  // states
static_assert(kChunk % kTileRows == 0 && kChunk % kLanes == 0, "tiles fill a chunk");

// --- Products

// A tile of a result += a (rows, depth) b (depth, vectors); strides in elements. Of a, that of the
// rows is a constant, for then every row's element is at a constant distance.
template <int kRowStride, int V>
static inline void add_product(Vec (&tile)[kTileRows][V], const float* a, int64_t depth_stride,
                               const float* b, int64_t b_stride, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[V];
    for (int v = 0; v < V; ++v) right[v] = load<Fp32>(b + k * b_stride + v * kLanes, kLanes);
    for (int r = 0; r < kTileRows; ++r) {
      const float left = a[r * kRowStride + k * depth_stride];
      for (int v = 0; v < V; ++v) tile[r][v] += left * right[v];
    }
  }
}

// The memory of a task: matrices by rows.
struct DualMatrices {
  float* h;  // (d_state, width) and, as B's and C's columns, rows up to a multiple of a tile's
  float* B;  // (kChunk, stride)
  float* C;  // (kChunk, stride), times L[:, before]
  int64_t stride;  // d_state up to a multiple of kTileRows
  int width;
  alignas(64) float L[kChunk][kChunk];  // times the scores; above the diagonal nothing is read
  alignas(64) float dt_x[kChunk][kColumns];
  alignas(64) float kept[kChunk][kColumns];  // L[last] dt x
};

// y of a tile of steps from `first` on. Later steps of the tile add nothing to earlier ones, not
// even a zero times an infinity.
template <int V>
static inline void output_tile(const DualMatrices& m, int64_t d_state, int first, int c, float* y) {
  Vec tile[kTileRows][V] = {};
  for (int64_t n = 0; n < d_state; n += kPanel) {
    const int64_t depth = d_state - n < kPanel ? d_state - n : kPanel;
    const float* C = m.C + n * kChunk + first * kPanel;
    add_product<kPanel>(tile, C, 1, m.h + n * m.width + c, m.width, depth);
  }
  add_product<kChunk>(tile, m.L[first], 1, m.dt_x[0] + c, kColumns, first);
  for (int j = 0; j < kTileRows; ++j) {
    for (int r = j; r < kTileRows; ++r) {
      const float left = m.L[first + r][first + j];
      for (int v = 0; v < V; ++v) {
        tile[r][v] += left * load<Fp32>(m.dt_x[first + j] + c + v * kLanes, kLanes);
      }
    }
  }
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < V; ++v) {
      store<Fp32>(y + (first + r) * kColumns + c + v * kLanes, tile[r][v], kLanes);
    }
  }
}

// h of a tile of states from `first` on, after a chunk that keeps `decay` of it.
template <int V>
static inline void state_tile(const DualMatrices& m, int64_t first, int c, int steps, float decay) {
  Vec tile[kTileRows][V];
  float* h = m.h + first * m.width + c;
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < V; ++v) {
      tile[r][v] = decay * load<Fp32>(h + r * m.width + v * kLanes, kLanes);
    }
  }
  add_product<1>(tile, m.B + first, m.stride, m.kept[0] + c, kColumns, steps);
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < V; ++v) store<Fp32>(h + r * m.width + v * kLanes, tile[r][v], kLanes);
  }
}

// --- A block of a head

// A row of C, times a number, into the panels.
template <typename T>
static inline void read_panels(const typename T::Bits* from, float times, int64_t d_state,
                               float* to) {
  for (int64_t n = 0; n < d_state; n += kLanes) {
    const int count = static_cast<int>(d_state - n < kLanes ? d_state - n : kLanes);
    store<Fp32>(to + n / kPanel * kPanel * kChunk + n % kPanel, times * load<T>(from + n, count),
                kLanes);
  }
}

// Fills the matrices for a chunk; returns L[last, before].
template <typename T>
static inline float read_chunk(const DualCall& call, const DualBlock& block, int64_t chunk,
                               const DualSteps& numbers, DualMatrices& m) {
  const mamba_state_space_dual_params& p = call.params;
  const int steps = steps_of(p, chunk);
  const float* scores = scores_of(call, block.batch, block.group, chunk);
  float before = 1.0f;
  Vec decays[kChunk / kLanes] = {};  // the row of L
  for (int t = 0; t < steps; ++t) {
    const int64_t step = walked(p, chunk * kChunk + t);
    before = without_subnormals(broadcast(before * numbers.decay[t]))[0];
    widen<T>(row<T>(p.B, block.batch, step) + block.group * p.d_state, m.B + t * m.stride,
             p.d_state);
    read_panels<T>(row<T>(p.C, block.batch, step) + block.group * p.d_state, before, p.d_state,
                   m.C + t * kPanel);
    for (int v = 0; v < kChunk / kLanes; ++v) {
      decays[v] = without_subnormals(decays[v] * numbers.decay[t]);
      if (t / kLanes == v) decays[v][t % kLanes] = 1.0f;
      const Vec score = load<Fp32>(scores + t * kChunk + v * kLanes, kLanes);
      store<Fp32>(m.L[t] + v * kLanes, decays[v] * score, kLanes);
    }
  }
  for (int t = steps; t < kChunk; ++t) {  // rows of tiles that hold no step
    for (int64_t n = 0; n < p.d_state; n += kPanel) {
      memset(m.C + n * kChunk + t * kPanel, 0, kPanel * sizeof(float));
    }
    memset(m.L[t], 0, sizeof m.L[t]);
    memset(m.dt_x[t], 0, sizeof m.dt_x[t]);
  }
  float last[kChunk];
  for (int v = 0; v < kChunk / kLanes; ++v) store<Fp32>(last + v * kLanes, decays[v], kLanes);
  for (int t = 0; t < steps; ++t) {
    for (int c = 0; c < m.width; c += kLanes) {
      const Vec dt_x = numbers.dt[t] * load<Fp32>(numbers.x[t] + c, kLanes);
      store<Fp32>(m.dt_x[t] + c, dt_x, kLanes);
      store<Fp32>(m.kept[t] + c, last[t] * dt_x, kLanes);
    }
  }
  return before;
}

template <int V>
static inline void multiply_chunk(const DualMatrices& m, int64_t d_state, int c, int steps,
                                  float decay, DualSteps& numbers) {
  for (int first = 0; first < steps; first += kTileRows) {
    output_tile<V>(m, d_state, first, c, numbers.y[0]);
  }
  for (int64_t n = 0; n < d_state; n += kTileRows) state_tile<V>(m, n, c, steps, decay);
}

// (channels, d_state) of the file <-> (d_state, width).
template <typename S>
static inline void load_states(const typename S::Bits* from, float* to, int count, int64_t d_state,
                               int width) {
  for (int c = 0; c < count; ++c) {
    for (int64_t n = 0; n < d_state; ++n) to[n * width + c] = load<S>(from + c * d_state + n, 1)[0];
  }
}

template <typename S>
static inline void store_states(const float* from, typename S::Bits* to, int count, int64_t d_state,
                                int width) {
  for (int c = 0; c < count; ++c) {
    for (int64_t n = 0; n < d_state; ++n) {
      store<S>(to + c * d_state + n, broadcast(from[n * width + c]), 1);
    }
  }
}

static int64_t chunks_scratch_bytes(const mamba_state_space_dual_params& p) {
  const int64_t stride = rounded_up(p.d_state, kPanel);
  return product(kColumns + 2 * kChunk, stride, sizeof(float));
}

template <typename T, typename S>
static void walk_in_chunks(const DualCall& call, const DualBlock& block, float* scratch) {
  const mamba_state_space_dual_params& p = call.params;
  DualMatrices m;
  m.stride = rounded_up(p.d_state, kTileRows);
  m.width = block.width();
  m.h = scratch;
  m.B = m.h + m.stride * m.width;
  m.C = m.B + m.stride * kChunk;
  memset(scratch, 0, m.stride * (m.width + 2 * kChunk) * sizeof(float));
  const int64_t at = state_at(p, block);
  if (p.initial_state) {
    load_states<S>(static_cast<const typename S::Bits*>(p.initial_state) + at, m.h, block.count,
                   p.d_state, m.width);
  }
  DualSteps numbers;
  for (int64_t chunk = 0; chunk < chunks_of(p); ++chunk) {
    const int steps = steps_of(p, chunk);
    read_steps<T>(p, block, chunk * kChunk, steps, numbers);
    const float decay = read_chunk<T>(call, block, chunk, numbers, m);
    int c = 0;
    for (; c + kTileVectors * kLanes <= m.width; c += kTileVectors * kLanes) {
      multiply_chunk<kTileVectors>(m, p.d_state, c, steps, decay, numbers);
    }
    for (; c < m.width; c += kLanes) multiply_chunk<1>(m, p.d_state, c, steps, decay, numbers);
    write_steps<T>(p, block, chunk * kChunk, steps, numbers);
  }
  store_states<S>(m.h, static_cast<typename S::Bits*>(p.last_state) + at, block.count, p.d_state,
                  m.width);
}

}  // namespace MAMBA_ISA
}  // namespace mamba
