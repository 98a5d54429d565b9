// The states of a channel, shared by a team of neighbouring threads.
#pragma once

#include "common/cuda/decay.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/tuning.cuh"

namespace mamba {
namespace step {

constexpr int kTeam = 4;        // threads that share a channel's states
constexpr int kTeamStates = 4;  // states that a thread takes at once

// Numbers first to first + 3 of a row of `count`, zeros beyond its end.
__device__ __forceinline__ Pack<float, kTeamStates> four_of(const float* row, int first, int count,
                                                            bool is_vector) {
  Pack<float, kTeamStates> values;
  if (is_vector && first < count) {
    return *reinterpret_cast<const Pack<float, kTeamStates>*>(row + first);
  }
#pragma unroll
  for (int i = 0; i < kTeamStates; ++i) values.values[i] = first + i < count ? row[first + i] : 0.f;
  return values;
}

__device__ __forceinline__ void put_four(float* row, int first, int count, bool is_vector,
                                         const Pack<float, kTeamStates>& values) {
  if (is_vector && first < count) {
    *reinterpret_cast<Pack<float, kTeamStates>*>(row + first) = values;
    return;
  }
#pragma unroll
  for (int i = 0; i < kTeamStates; ++i) {
    if (first + i < count) row[first + i] = values.values[i];
  }
}

// The sum of a team's numbers, for each of them.
__device__ __forceinline__ float team_sum(float value) {
#pragma unroll
  for (int distance = 1; distance < kTeam; distance *= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

}  // namespace step
}  // namespace mamba
