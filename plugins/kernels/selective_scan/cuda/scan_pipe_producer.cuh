// The pipelined scan (scan_pipe.cu): the warps that fill tiles with dt, dt u, B and C.
#pragma once

#include "common/cuda/mma.cuh"
#include "selective_scan/cuda/scan_pipe_shape.cuh"

namespace mamba {
namespace pipe {

// Makes every tile from what was fetched kUnderWay tiles ahead; produce_tile fetches the next.
template <typename S, typename Fetched, typename Fetch, typename ProduceTile>
__device__ __forceinline__ void produce_all(int tile_count, const Fetch& fetch,
                                            const ProduceTile& produce_tile) {
  Fetched even, odd;  // where one tile is under way, even has them all
  fetch(0, even);
  if (S::kUnderWay == 2) fetch(1, odd);
  for (int tile_index = 0; tile_index < tile_count; tile_index += S::kUnderWay) {
    produce_tile(tile_index, even);
    if (S::kUnderWay == 2 && tile_index + 1 < tile_count) produce_tile(tile_index + 1, odd);
  }
}

template <typename T, typename S>
__device__ __forceinline__ void produce(const mamba_selective_scan_params& p, int64_t batch,
                                        int64_t first, int tile_count, int consumers, int width,
                                        int thread, typename S::Tile* tiles) {
  constexpr int kStateQuads = S::kStateQuads;
  const Items<S> items(p.d_inner - first, width, thread);
  const Walk<T> u_walk(p, p.u, batch, first), delta_walk(p, p.delta, batch, first);
  const Walk<T> B_walk(p, p.B, batch, 0), C_walk(p, p.C, batch, 0);
  const int threads = consumers + S::kRoleThreads;
  const int state = thread % kStateQuads * kQuad;
  const bool has_state = state < p.d_state;
  const int read_state = has_state ? state : 0;
  const bool has_softplus = p.delta_softplus;
  struct Fetched {
    RawQuad<T> u[S::kItems], delta[S::kItems], B[S::kStateItems], C[S::kStateItems];
  };
  float4 bias[S::kItems];
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) {
    bias[i] = four_parameters(p.delta_bias + first + items.channel[i]);
  }
  // What does not exist is read from where something does: no branch parts the loads.
  const auto fetch = [&](int tile_index, Fetched& to) {
    if (tile_index >= tile_count) return;
    const int last = steps_of_tile<S::kSteps>(p.length, tile_index) - 1;
    const T *u = u_walk.tile(tile_index, S::kSteps),
            *delta = delta_walk.tile(tile_index, S::kSteps);
    const T *B = B_walk.tile(tile_index, S::kSteps) + read_state,
            *C = C_walk.tile(tile_index, S::kSteps) + read_state;
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      const int step = min(items.step[i], last);
      to.u[i].read(u + (step * u_walk.stride + items.channel[i]));
      to.delta[i].read(delta + (step * delta_walk.stride + items.channel[i]));
    }
#pragma unroll
    for (int i = 0; i < S::kStateItems; ++i) {
      const int step = min((thread + i * S::kRoleThreads) / kStateQuads, last);
      to.B[i].read(B + step * B_walk.stride);
      to.C[i].read(C + step * C_walk.stride);
    }
  };

  int stage = 0;
  const auto produce_tile = [&](int tile_index, Fetched& fetched) {
    auto& tile = tiles[stage];
    const int steps = steps_of_tile<S::kSteps>(p.length, tile_index);
    if (tile_index >= kStages) wait(kFree + stage, threads);
    // Steps past the end get dt = 0, which leaves a state as it is.
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      float u[kQuad], delta[kQuad], dt[kQuad];
      fetched.u[i].unpack(u);
      fetched.delta[i].unpack(delta);
      const float biases[] = {bias[i].x, bias[i].y, bias[i].z, bias[i].w};
      const bool exists = items.step[i] < steps;
#pragma unroll
      for (int v = 0; v < kQuad; ++v) {
        const float plain = delta[v] + biases[v];
        const float soft = softplus<T>(plain);
        dt[v] = has_softplus ? soft : plain;
        dt[v] = exists ? dt[v] : 0.f;
        u[v] = exists ? u[v] * dt[v] : 0.f;
      }
      if (!items.exists[i]) continue;
      auto* to = reinterpret_cast<float4*>(&tile.dt_du[items.step[i]][items.channel[i]]);
      to[0] = make_float4(dt[0], u[0], dt[1], u[1]);
      to[1] = make_float4(dt[2], u[2], dt[3], u[3]);
    }
#pragma unroll
    for (int i = 0; i < S::kStateItems; ++i) {
      const int step = (thread + i * S::kRoleThreads) / kStateQuads;
      if (step >= S::kSteps) continue;
      float B[kQuad], C[kQuad];
      fetched.B[i].unpack(B);
      fetched.C[i].unpack(C);
      const bool exists = step < steps && has_state;
#pragma unroll
      for (int v = 0; v < kQuad; ++v) {
        B[v] = exists ? B[v] : 0.f;
        C[v] = exists ? C[v] : 0.f;
      }
      *reinterpret_cast<float4*>(&tile.B[step][state]) = make_float4(B[0], B[1], B[2], B[3]);
      *reinterpret_cast<float4*>(&tile.C[step][state]) = make_float4(C[0], C[1], C[2], C[3]);
    }
    arrive(kFilled + stage, threads);
    fetch(tile_index + S::kUnderWay, fetched);
    stage = stage + 1 < kStages ? stage + 1 : 0;
  };

  produce_all<S, Fetched>(tile_count, fetch, produce_tile);
}

// As produce, but delta is made here, from what x_proj made, by tiles of 16 steps and 8 channels. A
// product's sum does not ask for the order of its factors, so that a lane reads four neighbours of
// a row of dt at once, and takes the same four rows of the weight, which stay in registers.
template <typename T, typename S, int kDepths>
__device__ __forceinline__ void produce_with_dt_proj(const mamba_selective_scan_params& p,
                                                     const ScanDtProj& proj, int64_t batch,
                                                     int64_t first, int tile_count, int consumers,
                                                     int width, int thread,
                                                     typename S::Tile* tiles) {
  constexpr int kStateQuads = S::kStateQuads, kWarps = S::kRoleThreads / 32;
  constexpr int kTiles = 2 * (S::kWidth / 8) / kWarps;
  static_assert(kTiles * kWarps == 2 * (S::kWidth / 8) && kWarps % 2 == 0 && S::kSteps == 32);
  const int lane = thread % 32, warp = thread / 32, g = lane / 4, q = lane % 4;
  const int first_step = warp % 2 * 16 + g;
  const Walk<T> u_walk(p, p.u, batch, first), dt_walk(p, proj.dt, batch, 0);
  const Walk<T> B_walk(p, p.B, batch, 0), C_walk(p, p.C, batch, 0);
  const int threads = consumers + S::kRoleThreads;
  const int state = thread % kStateQuads * kQuad;
  const bool has_state = state < p.d_state;
  const int read_state = has_state ? state : 0;
  const bool has_softplus = p.delta_softplus;
  const int channels = static_cast<int>(min(int64_t{width}, p.d_inner - first));
  int channel[kTiles];
  bool has_channel[kTiles];
  float2 bias[kTiles];
  uint32_t weight[kTiles][kDepths][2];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const int block = (warp + t * kWarps) / 2 * 8;
    has_channel[t] = block + 2 * q < channels;
    channel[t] = has_channel[t] ? block + 2 * q : 0;
    bias[t] = make_float2(p.delta_bias[first + channel[t]], p.delta_bias[first + channel[t] + 1]);
    const T* column = static_cast<const T*>(proj.weight) + first + min(block + g, channels - 1);
#pragma unroll
    for (int k = 0; k < kDepths; ++k) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const T* at = column + (k * kDtDepth + 4 * q + 2 * j) * p.d_inner;
        weight[t][k][j] = pack_two<T>(to_float(at[0]), to_float(at[p.d_inner]));
      }
    }
  }
  struct Fetched {
    uint2 dt[kDepths][2];
    uint32_t u[kTiles][2];
    RawQuad<T> B[S::kStateItems], C[S::kStateItems];
  };
  const auto fetch = [&](int tile_index, Fetched& to) {
    if (tile_index >= tile_count) return;
    const int last = steps_of_tile<S::kSteps>(p.length, tile_index) - 1;
    const T *u = u_walk.tile(tile_index, S::kSteps), *dt = dt_walk.tile(tile_index, S::kSteps);
    const T *B = B_walk.tile(tile_index, S::kSteps) + read_state,
            *C = C_walk.tile(tile_index, S::kSteps) + read_state;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int step = min(first_step + 8 * j, last);
#pragma unroll
      for (int k = 0; k < kDepths; ++k) {
        to.dt[k][j] =
            *reinterpret_cast<const uint2*>(dt + step * dt_walk.stride + k * kDtDepth + 4 * q);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        to.u[t][j] = *reinterpret_cast<const uint32_t*>(u + step * u_walk.stride + channel[t]);
      }
    }
#pragma unroll
    for (int i = 0; i < S::kStateItems; ++i) {
      const int step = min((thread + i * S::kRoleThreads) / kStateQuads, last);
      to.B[i].read(B + step * B_walk.stride);
      to.C[i].read(C + step * C_walk.stride);
    }
  };

  int stage = 0;
  const auto produce_tile = [&](int tile_index, Fetched& fetched) {
    auto& tile = tiles[stage];
    const int steps = steps_of_tile<S::kSteps>(p.length, tile_index);
    float delta[kTiles][4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      delta[t][0] = delta[t][2] = bias[t].x;
      delta[t][1] = delta[t][3] = bias[t].y;
#pragma unroll
      for (int k = 0; k < kDepths; ++k) {
        const uint32_t left[4] = {fetched.dt[k][0].x, fetched.dt[k][1].x, fetched.dt[k][0].y,
                                  fetched.dt[k][1].y};
        multiply_add<T>(delta[t], left, weight[t][k][0], weight[t][k][1]);
      }
    }
    if (tile_index >= kStages) wait(kFree + stage, threads);
    // Steps past the end get dt = 0, which leaves a state as it is.
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 two = unpack_two<T>(fetched.u[t][j]);
        const float us[] = {two.x, two.y};
        float dt[2], du[2];
        const bool exists = first_step + 8 * j < steps;
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const float plain = delta[t][2 * j + v];
          const float soft = softplus<T>(plain);
          dt[v] = has_softplus ? soft : plain;
          dt[v] = exists ? dt[v] : 0.f;
          du[v] = exists ? us[v] * dt[v] : 0.f;
        }
        if (!has_channel[t]) continue;
        *reinterpret_cast<float4*>(&tile.dt_du[first_step + 8 * j][channel[t]]) =
            make_float4(dt[0], du[0], dt[1], du[1]);
      }
    }
#pragma unroll
    for (int i = 0; i < S::kStateItems; ++i) {
      const int step = (thread + i * S::kRoleThreads) / kStateQuads;
      if (step >= S::kSteps) continue;
      float B[kQuad], C[kQuad];
      fetched.B[i].unpack(B);
      fetched.C[i].unpack(C);
      const bool exists = step < steps && has_state;
#pragma unroll
      for (int v = 0; v < kQuad; ++v) {
        B[v] = exists ? B[v] : 0.f;
        C[v] = exists ? C[v] : 0.f;
      }
      *reinterpret_cast<float4*>(&tile.B[step][state]) = make_float4(B[0], B[1], B[2], B[3]);
      *reinterpret_cast<float4*>(&tile.C[step][state]) = make_float4(C[0], C[1], C[2], C[3]);
    }
    arrive(kFilled + stage, threads);
    fetch(tile_index + S::kUnderWay, fetched);
    stage = stage + 1 < kStages ? stage + 1 : 0;
  };

  produce_all<S, Fetched>(tile_count, fetch, produce_tile);
}

}  // namespace pipe
}  // namespace mamba
