// What a consumer holds in registers: slices of x, and the state, with its ways in and out of
// memory.
#pragma once

#include "common/cuda/hopper_ptx.cuh"
#include "state_space_dual/cuda/ssd_hopper_pair.cuh"
#include "state_space_dual/cuda/ssd_hopper_tiles.cuh"

namespace mamba {
namespace hopper {

// --- x of a chunk, transposed: an operand of 64 channels by 64 steps -----------------------------

// Where in a tile this lane's rows of the first 16 steps' matrices begin.
__device__ __forceinline__ uint32_t channel_rows(const Place& place) {
  const int matrix = place.lane >> 3;
  return in_tile((matrix >> 1) * 8 + (place.lane & 7), 2 * place.warp + (matrix & 1));
}
constexpr uint32_t kNextRows = 16 * 128;  // of the next 16 steps

__device__ __forceinline__ void load_channels(uint32_t rows, uint32_t (&x)[16]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    load_transposed(rows + k * kNextRows, reinterpret_cast<uint32_t (&)[4]>(x[4 * k]));
  }
}

// Multiplies each step of x by its weight; weights is the address of the chunk's 64.
template <typename T>
__device__ __forceinline__ void weigh(uint32_t weights, const Place& place, const uint32_t (&x)[16],
                                      uint32_t (&weighed)[16]) {
  float2 weight[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) weight[k] = load_floats(weights + 4 * (8 * k + place.column));
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float2 w = weight[i / 4 * 2 + i % 4 / 2], values = Pair<T>::floats(x[i]);
    weighed[i] = Pair<T>::of(values.x * w.x, values.y * w.y);
  }
}

// --- The state: 64 channels by States, an accumulator --------------------------------------------

template <int Count>
__device__ __forceinline__ float largest(const float (&h)[Count]) {
  float most = 0.f;
#pragma unroll
  for (int i = 0; i < Count; ++i) most = fmaxf(most, fabsf(h[i]));
  return most;
}

// A power of two that brings numbers up to most into fp16's range, and its inverse.
struct Range {
  float shrink = 1.f, grow = 1.f;

  Range() = default;
  __device__ __forceinline__ explicit Range(float most) {
    const int exponent = __float_as_int(most) >> 23;  // plus 127; 255 of infinity and NaN
    const int wanted = min(127 + 14 + 127 - exponent, 253);
    shrink = __int_as_float(wanted << 23);
    grow = __int_as_float((254 - wanted) << 23);
  }
};

template <typename T, int Count>
__device__ __forceinline__ void pack(const float (&h)[Count], float factor,
                                     uint32_t (&packed)[Count / 2]) {
#pragma unroll
  for (int i = 0; i < Count / 2; ++i) {
    packed[i] = Pair<T>::of(h[2 * i] * factor, h[2 * i + 1] * factor);
  }
}

// The state as an operand. Numbers beyond fp16's range are shrunk in the whole warp, whose rows of
// the product then have to grow by what this returns.
template <typename T, int Count>
__device__ __forceinline__ float pack_state(const float (&h)[Count],
                                            uint32_t (&packed)[Count / 2]) {
#pragma unroll
  for (int i = 0; i < Count / 2; ++i) packed[i] = Pair<T>::of(h[2 * i], h[2 * i + 1]);
  if constexpr (std::is_same<T, __half>::value) {
    __half2 most = __float2half2_rn(0.f);
#pragma unroll
    for (int i = 0; i < Count / 2; ++i) {
      most = __hmax2(most, __habs2(reinterpret_cast<const __half2&>(packed[i])));
    }
    const bool beyond = __hisinf(__low2half(most)) || __hisinf(__high2half(most));
    if (__any_sync(~0u, beyond)) {
      float all = largest(h);
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        all = fmaxf(all, __shfl_xor_sync(~0u, all, distance));
      }
      const Range range(all);
      pack<T>(h, range.shrink, packed);
      return range.grow;
    }
  }
  return 1.f;
}

// Body(element of h, offset in the slice's (channels, States) numbers) for each two neighbours.
template <int States, typename Body>
__device__ __forceinline__ void each_two_states(const Place& place, const Slice& slice, Body body) {
  const bool upper = place.row < slice.channels, lower = place.row + 8 < slice.channels;
#pragma unroll
  for (int j = 0; j < States / 8; ++j) {
    const int offset = place.row * States + 8 * j + place.column;
    if (upper) body(4 * j, offset);
    if (lower) body(4 * j + 2, offset + 8 * States);
  }
}

// Where a slice's state begins, in numbers.
template <int States>
__device__ __forceinline__ int64_t state_offset(const SsdHopperArguments& p, int batch,
                                                const Slice& slice) {
  const int64_t head = int64_t{batch} * p.heads + slice.head;
  return (head * p.head_dim + slice.channel) * States;
}

// h of a slice from states, (batch, heads, head_dim, States), fp32 or T; h is zeros before.
template <typename T, int States>
__device__ __forceinline__ void load_state(const SsdHopperArguments& p, const void* states,
                                           int batch, const Slice& slice, const Place& place,
                                           float (&h)[States / 2]) {
  const int64_t first = state_offset<States>(p, batch, slice);
  if (p.state_is_fp32) {
    const float* state = static_cast<const float*>(states) + first;
    each_two_states<States>(place, slice, [&](int i, int offset) {
      const float2 two = *reinterpret_cast<const float2*>(state + offset);
      h[i] = two.x;
      h[i + 1] = two.y;
    });
  } else {
    const T* state = static_cast<const T*>(states) + first;
    each_two_states<States>(place, slice, [&](int i, int offset) {
      const float2 two = Pair<T>::floats(*reinterpret_cast<const uint32_t*>(state + offset));
      h[i] = two.x;
      h[i + 1] = two.y;
    });
  }
}

template <typename T, int States>
__device__ __forceinline__ void save_state(const SsdHopperArguments& p, int batch,
                                           const Slice& slice, const Place& place,
                                           const float (&h)[States / 2]) {
  const int64_t first = state_offset<States>(p, batch, slice);
  if (p.state_is_fp32) {
    float* state = static_cast<float*>(p.last_state) + first;
    each_two_states<States>(place, slice, [&](int i, int offset) {
      *reinterpret_cast<float2*>(state + offset) = {h[i], h[i + 1]};
    });
  } else {
    T* state = static_cast<T*>(p.last_state) + first;
    each_two_states<States>(place, slice, [&](int i, int offset) {
      *reinterpret_cast<uint32_t*>(state + offset) = Pair<T>::of(h[i], h[i + 1]);
    });
  }
}

// --- What a part of a split length adds to the state, between the two launches -------------------
//
// 16 bytes of each thread side by side. fp16 has a factor of each thread, so that nothing leaves
// its range.

template <typename T, int States>
__device__ __forceinline__ void save_part(const SsdHopperArguments& p, int64_t index,
                                          const Place& place, const float (&h)[States / 2]) {
  Range range;
  if constexpr (std::is_same<T, __half>::value) {
    range = Range(largest(h));
    p.part_scales[index * kWarpgroup + place.thread] = range.grow;
  }
  uint32_t packed[States / 4];
  pack<T>(h, range.shrink, packed);
  uint4* to = p.part_states + index * (States / 16 * kWarpgroup) + place.thread;
#pragma unroll
  for (int k = 0; k < States / 16; ++k) {
    to[k * kWarpgroup] = {packed[4 * k], packed[4 * k + 1], packed[4 * k + 2], packed[4 * k + 3]};
  }
}

template <typename T, int States>
struct Part {
  uint4 states[States / 16];
  float decay, scale;

  __device__ __forceinline__ void load(const SsdHopperArguments& p, int64_t index,
                                       const Place& place) {
    const uint4* from = p.part_states + index * (States / 16 * kWarpgroup) + place.thread;
#pragma unroll
    for (int k = 0; k < States / 16; ++k) states[k] = __ldcg(from + k * kWarpgroup);
    decay = __ldcg(p.part_decays + index);
    if constexpr (std::is_same<T, __half>::value) {
      scale = __ldcg(p.part_scales + index * kWarpgroup + place.thread);
    } else {
      scale = 1.f;
    }
  }

  // h after the part, from h before it.
  __device__ __forceinline__ void apply(float (&h)[States / 2]) const {
#pragma unroll
    for (int k = 0; k < States / 16; ++k) {
      const uint32_t pairs[4] = {states[k].x, states[k].y, states[k].z, states[k].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = Pair<T>::floats(pairs[i]);
        h[8 * k + 2 * i] = h[8 * k + 2 * i] * decay + two.x * scale;
        h[8 * k + 2 * i + 1] = h[8 * k + 2 * i + 1] * decay + two.y * scale;
      }
    }
  }
};

}  // namespace hopper
}  // namespace mamba
