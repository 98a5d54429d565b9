// The pipelined scan (scan_pipe.cu): the warps that sum, skip, gate and store what consumers made.
#pragma once

#include "selective_scan/cuda/scan_pipe_shape.cuh"

namespace mamba {
namespace pipe {

// The sums of four channels from a row of y: undoes sum_at.
template <typename S>
__device__ __forceinline__ void read_sums(const float* row, int channel, float (&to)[kQuad]) {
  const int in_warp = channel % S::kMultiple;
  const float* from = row + channel / S::kMultiple * S::kMultiple * S::kParts;
  if constexpr (S::kParts > 2) {
    // Two consumer warps or four have the four channels.
#pragma unroll
    for (int v = 0; v < kQuad; ++v) {
      const int c = channel + v;
      const float* parts = row + c / S::kMultiple * S::kMultiple * S::kParts +
                           c % S::kChannels * 8 + c % S::kMultiple / S::kChannels * S::kParts;
      to[v] = 0.f;
#pragma unroll
      for (int part = 0; part < S::kParts; part += 4) {
        const auto four = *reinterpret_cast<const float4*>(parts + part);
        to[v] += (four.x + four.y) + (four.z + four.w);
      }
    }
  } else if constexpr (S::kParts == 2) {
    constexpr bool kTwo = S::kChannels == 2;
    const float* low = from + in_warp * 2 / S::kChannels;
    const auto a = *reinterpret_cast<const float4*>(low);
    const auto b = *reinterpret_cast<const float4*>(low + (kTwo ? 8 : 4));
    to[0] = a.x + a.y;
    to[kTwo ? 2 : 1] = a.z + a.w;
    to[kTwo ? 1 : 2] = b.x + b.y;
    to[3] = b.z + b.w;
  } else if constexpr (S::kChannels == 2) {
    const auto even = *reinterpret_cast<const float2*>(from + in_warp / 2);
    const auto odd = *reinterpret_cast<const float2*>(from + in_warp / 2 + 8);
    to[0] = even.x;
    to[1] = odd.x;
    to[2] = even.y;
    to[3] = odd.y;
  } else {
    const auto all = *reinterpret_cast<const float4*>(from + in_warp);
    to[0] = all.x;
    to[1] = all.y;
    to[2] = all.z;
    to[3] = all.w;
  }
}

template <typename T, typename S>
__device__ __forceinline__ void epilogue(const mamba_selective_scan_params& p, int64_t batch,
                                         int64_t first, int tile_count, int consumers, int width,
                                         int thread, const typename S::Tile* tiles) {
  const bool has_gate = p.z.data;
  const mamba_sequence y_sequence = {p.y, p.length * p.d_inner, p.d_inner};
  const Items<S> items(p.d_inner - first, width, thread);
  const Walk<T> u_walk(p, p.u, batch, first), y_walk(p, y_sequence, batch, first);
  const Walk<T> z_walk(p, has_gate ? p.z : p.u, batch, first);
  const int threads = consumers + S::kRoleThreads;
  struct Fetched {
    RawQuad<T> u[S::kItems], z[S::kItems];
  };
  float4 D[S::kItems];
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) D[i] = four_parameters(p.D + first + items.channel[i]);
  const auto fetch = [&](int tile_index, Fetched& to) {
    if (tile_index >= tile_count) return;
    const int last = steps_of_tile<S::kSteps>(p.length, tile_index) - 1;
    const T *u = u_walk.tile(tile_index, S::kSteps), *z = z_walk.tile(tile_index, S::kSteps);
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      const int step = min(items.step[i], last);
      to.u[i].read(u + (step * u_walk.stride + items.channel[i]));
      to.z[i].read(z + (step * z_walk.stride + items.channel[i]));
    }
  };

  int stage = 0;
  const auto store_tile = [&](int tile_index, Fetched& fetched) {
    const auto& tile = tiles[stage];
    const int steps = steps_of_tile<S::kSteps>(p.length, tile_index);
    T* y = y_walk.tile(tile_index, S::kSteps);
    wait(kSummed + stage, threads);
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      float values[kQuad], u[kQuad], z[kQuad];
      read_sums<S>(tile.y[min(items.step[i], S::kSteps - 1)], items.channel[i], values);
      fetched.u[i].unpack(u);
      fetched.z[i].unpack(z);
      const float skips[] = {D[i].x, D[i].y, D[i].z, D[i].w};
      Pack<T, kQuad> packed;
#pragma unroll
      for (int v = 0; v < kQuad; ++v) {
        values[v] += skips[v] * u[v];
        const float gate = silu<T>(z[v]);
        if (has_gate) values[v] *= gate;
        packed.values[v] = from_float<T>(values[v]);
      }
      if (items.exists[i] && items.step[i] < steps) {
        T* to = y + (items.step[i] * y_walk.stride + items.channel[i]);
        *reinterpret_cast<Pack<T, kQuad>*>(to) = packed;
      }
    }
    if (tile_index + kStages < tile_count) arrive(kStored + stage, threads);
    fetch(tile_index + S::kUnderWay, fetched);
    stage = stage + 1 < kStages ? stage + 1 : 0;
  };

  Fetched even, odd;  // as in produce
  fetch(0, even);
  if (S::kUnderWay == 2) fetch(1, odd);
  for (int tile_index = 0; tile_index < tile_count; tile_index += S::kUnderWay) {
    store_tile(tile_index, even);
    if (S::kUnderWay == 2 && tile_index + 1 < tile_count) store_tile(tile_index + 1, odd);
  }
}

}  // namespace pipe
}  // namespace mamba
