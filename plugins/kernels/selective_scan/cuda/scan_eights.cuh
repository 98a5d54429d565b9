// The roles beside the recurrence in scan_mma.cu: producer warps fill tiles of some steps, epilogue
// warps empty them. They move eight numbers of 16 bits at once.
#pragma once

#include "common/cuda/mma.cuh"
#include "selective_scan/cuda/scan_stages.cuh"

namespace mamba {

constexpr int kEight = 8;  // channels, or states, that these roles move at once

// log2(1 + 2^x), as softplus in units of ln 2 (numeric.cuh).
__device__ __forceinline__ float softplus2(float x) {
  const float e = exp2_fast(x);
  const float series = e * (kLog2e - e * (0.5f * kLog2e - e * (kLog2e / 3.f)));
  const float plain = e < 0.015625f ? series : log2_fast(1.f + e);
  return x > 20.f * kLog2e ? x : plain;
}

// Eight numbers of T as they lie in memory.
template <typename T>
__device__ __forceinline__ void unpack(const uint4& bits, float (&to)[kEight]) {
  const uint32_t words[] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int v = 0; v < kEight; v += 2) {
    const float2 two = unpack_two<T>(words[v / 2]);
    to[v] = two.x;
    to[v + 1] = two.y;
  }
}

__device__ __forceinline__ void store_four(float* to, float a, float b, float c, float d) {
  *reinterpret_cast<float4*>(to) = make_float4(a, b, c, d);
}

// The eights of a tile that a thread of the other roles has: eight channels at one of the steps.
template <typename S>
struct Items {
  int step[S::kItems], channel[S::kItems];
  bool exists[S::kItems];

  __device__ Items(int64_t channels, int thread) {
    constexpr int kEights = S::kWidth / kEight;
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      const int item = thread + i * S::kRoleThreads;
      step[i] = item / kEights;
      channel[i] = item % kEights * kEight;
      exists[i] = step[i] < S::kSteps && channel[i] < channels;
    }
  }
  // Of a tile of so many steps.
  __device__ __forceinline__ bool has(int i, int steps) const {
    return exists[i] && step[i] < steps;
  }
};

// Where items of one sequence lie, tile after tile.
template <typename T, int kCount>
struct Places {
  const T* at[kCount];
  int64_t stride;  // from tile to tile

  template <typename Step, typename Column>
  __device__ Places(const mamba_selective_scan_params& p, const mamba_sequence& sequence,
                    int64_t batch, int steps, Step step, Column column) {
    const int64_t one = p.reverse ? -sequence.step_stride : sequence.step_stride;
    const T* start = row<T>(sequence, batch, walked(p, 0));
#pragma unroll
    for (int i = 0; i < kCount; ++i) at[i] = start + step(i) * one + column(i);
    stride = one * steps;
  }
  __device__ __forceinline__ uint4 read(int i) const {
    return *reinterpret_cast<const uint4*>(at[i]);
  }
  __device__ __forceinline__ void advance() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) at[i] += stride;
  }
};

template <typename T, typename S>
__device__ __forceinline__ void produce(const mamba_selective_scan_params& p, int64_t batch,
                                        int64_t first, int tile_count, int thread,
                                        typename S::Tile* tiles) {
  constexpr int kHandOver = S::kConsumers + S::kRoleThreads;
  const Items<S> items(p.d_inner - first, thread);
  const auto step = [&](int i) { return items.step[i]; };
  const auto channel = [&](int i) { return first + items.channel[i]; };
  const int state = thread % 2 * kEight;
  const auto state_step = [&](int i) { return (thread + i * S::kRoleThreads) / 2; };
  const auto state_column = [&](int) { return state; };
  const bool has_state = state < p.d_state;
  Places<T, S::kItems> u(p, p.u, batch, S::kSteps, step, channel);
  Places<T, S::kItems> delta(p, p.delta, batch, S::kSteps, step, channel);
  Places<T, S::kStateItems> B(p, p.B, batch, S::kSteps, state_step, state_column);
  Places<T, S::kStateItems> C(p, p.C, batch, S::kSteps, state_step, state_column);
  struct Fetched {
    uint4 u[S::kItems], delta[S::kItems], B[S::kStateItems], C[S::kStateItems];
  };
  // In units of ln 2, which softplus takes.
  float bias[S::kItems][kEight];
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) {
#pragma unroll
    for (int v = 0; v < kEight; ++v) {
      bias[i][v] = items.exists[i] ? p.delta_bias[channel(i) + v] * kLog2e : 0.f;
    }
  }
  const auto fetch = [&](int tile_index, Fetched& to) {
    const int steps = tile_index < tile_count ? steps_of_tile<S::kSteps>(p.length, tile_index) : 0;
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      to.u[i] = to.delta[i] = uint4{};
      if (items.has(i, steps)) {
        to.u[i] = u.read(i);
        to.delta[i] = delta.read(i);
      }
    }
#pragma unroll
    for (int i = 0; i < S::kStateItems; ++i) {
      to.B[i] = to.C[i] = uint4{};
      if (state_step(i) < steps && has_state) {
        to.B[i] = B.read(i);
        to.C[i] = C.read(i);
      }
    }
    u.advance();
    delta.advance();
    B.advance();
    C.advance();
  };

  int stage = 0;
  const auto produce_tile = [&](int tile_index, Fetched& fetched) {
    auto& tile = tiles[stage];
    const int steps = steps_of_tile<S::kSteps>(p.length, tile_index);
    if (tile_index >= kStages) wait(kFree + stage, kHandOver);
    float zero = 0.f;  // else NaN: something is not finite
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      float u[kEight], dt[kEight];
      unpack<T>(fetched.u[i], u);
      unpack<T>(fetched.delta[i], dt);
#pragma unroll
      for (int v = 0; v < kEight; ++v) dt[v] = dt[v] * kLog2e + bias[i][v];
      if (p.delta_softplus) {
#pragma unroll
        for (int v = 0; v < kEight; ++v) dt[v] = softplus2(dt[v]);
      }
      // Steps past the end get dt = 0, which leaves a state as it is.
      if (!items.has(i, steps)) {
#pragma unroll
        for (int v = 0; v < kEight; ++v) dt[v] = 0.f;
      }
#pragma unroll
      for (int v = 0; v < kEight; ++v) {
        dt[v] *= kLn2;
        u[v] *= dt[v];
      }
#pragma unroll
      for (int v = 0; v < kEight; ++v) zero += 0.f * u[v];
      if (S::kWidth / kEight * S::kSteps % S::kRoleThreads && items.step[i] >= S::kSteps) continue;
      auto* to = reinterpret_cast<float*>(&tile.dt_du[items.step[i]][items.channel[i]]);
#pragma unroll
      for (int v = 0; v < kEight; v += 2) store_four(to + 2 * v, dt[v], u[v], dt[v + 1], u[v + 1]);
    }
#pragma unroll
    for (int i = 0; i < S::kStateItems; ++i) {
      if (2 * S::kSteps % S::kRoleThreads && state_step(i) >= S::kSteps) continue;
      float B[kEight], C[kEight];
      unpack<T>(fetched.B[i], B);
      unpack<T>(fetched.C[i], C);
#pragma unroll
      for (int v = 0; v < kEight; ++v) zero += 0.f * B[v] + 0.f * C[v];
#pragma unroll
      for (int v = 0; v < kEight; v += 4) {
        store_four(&tile.B[state_step(i)][state + v], B[v], B[v + 1], B[v + 2], B[v + 3]);
        store_four(&tile.C[state_step(i)][state + v], C[v], C[v + 1], C[v + 2], C[v + 3]);
      }
    }
    if (zero != 0.f) tile.not_finite = tile_index + 1;
    arrive(kFilled + stage, kHandOver);
    fetch(tile_index + 2, fetched);
    stage = stage + 1 < kStages ? stage + 1 : 0;
  };

  Fetched even, odd;  // two tiles are on their way from device memory
  fetch(0, even);
  fetch(1, odd);
  for (int tile_index = 0; tile_index < tile_count; tile_index += 2) {
    produce_tile(tile_index, even);
    if (tile_index + 1 < tile_count) produce_tile(tile_index + 1, odd);
  }
}

template <typename T, typename S>
__device__ __forceinline__ void epilogue(const mamba_selective_scan_params& p, int64_t batch,
                                         int64_t first, int tile_count, int thread,
                                         const typename S::Tile* tiles) {
  constexpr int kHandOver = S::kConsumers + S::kRoleThreads;
  const bool has_gate = p.z.data;
  const mamba_sequence y_sequence = {p.y, p.length * p.d_inner, p.d_inner};
  const Items<S> items(p.d_inner - first, thread);
  const auto step = [&](int i) { return items.step[i]; };
  const auto channel = [&](int i) { return first + items.channel[i]; };
  Places<T, S::kItems> u(p, p.u, batch, S::kSteps, step, channel);
  Places<T, S::kItems> z(p, has_gate ? p.z : p.u, batch, S::kSteps, step, channel);
  Places<T, S::kItems> y(p, y_sequence, batch, S::kSteps, step, channel);
  struct Fetched {
    uint4 u[S::kItems], z[S::kItems];
  };
  float D[S::kItems][kEight];
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) {
#pragma unroll
    for (int v = 0; v < kEight; ++v) D[i][v] = items.exists[i] ? p.D[channel(i) + v] : 0.f;
  }
  const auto fetch = [&](int tile_index, Fetched& to) {
    const int steps = tile_index < tile_count ? steps_of_tile<S::kSteps>(p.length, tile_index) : 0;
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      if (items.has(i, steps)) {
        to.u[i] = u.read(i);
        to.z[i] = z.read(i);
      }
    }
    u.advance();
    z.advance();
  };

  int stage = 0;
  const auto store_tile = [&](int tile_index, Fetched& fetched) {
    const auto& tile = tiles[stage];
    const int steps = steps_of_tile<S::kSteps>(p.length, tile_index);
    wait(kSummed + stage, kHandOver);
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      if (!items.has(i, steps)) continue;
      float sums[kEight], u[kEight];
      const int column = items.channel[i];
#pragma unroll
      for (int v = 0; v < kEight; v += 4) {
        const auto four = *reinterpret_cast<const float4*>(&tile.y[items.step[i]][column + v]);
        sums[v] = four.x;
        sums[v + 1] = four.y;
        sums[v + 2] = four.z;
        sums[v + 3] = four.w;
      }
      unpack<T>(fetched.u[i], u);
#pragma unroll
      for (int v = 0; v < kEight; ++v) sums[v] += D[i][v] * u[v];
      if (has_gate) {
        float z[kEight];
        unpack<T>(fetched.z[i], z);
#pragma unroll
        for (int v = 0; v < kEight; ++v) sums[v] *= silu<T>(z[v]);
      }
      uint4 packed = {pack_two<T>(sums[0], sums[1]), pack_two<T>(sums[2], sums[3]),
                      pack_two<T>(sums[4], sums[5]), pack_two<T>(sums[6], sums[7])};
      *reinterpret_cast<uint4*>(const_cast<T*>(y.at[i])) = packed;
    }
    y.advance();
    if (tile_index + kStages < tile_count) arrive(kStored + stage, kHandOver);
    fetch(tile_index + 2, fetched);
    stage = stage + 1 < kStages ? stage + 1 : 0;
  };

  Fetched even, odd;  // as in produce
  fetch(0, even);
  fetch(1, odd);
  for (int tile_index = 0; tile_index < tile_count; tile_index += 2) {
    store_tile(tile_index, even);
    if (tile_index + 1 < tile_count) store_tile(tile_index + 1, odd);
  }
}

}  // namespace mamba
