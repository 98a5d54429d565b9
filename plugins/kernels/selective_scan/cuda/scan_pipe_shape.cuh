// The pipelined scan (scan_pipe.cu): what follows from the constants of a tile, and how the warps
// beside the consumers walk a sequence and share out a tile.
#pragma once

#include "common/cuda/gpu.cuh"
#include "selective_scan/cuda/scan_stages.cuh"

namespace mamba {
namespace pipe {

constexpr int kGroup = 4;      // steps of an iteration of the consumers' loop
constexpr int kQuad = 4;       // channels, or states, that the other roles move at once
constexpr int kMaxSteps = 32;  // of a tile
constexpr int kDtDepth = 16;   // of dt_proj, that a product of matrices takes at once

// What follows from the tile's constants (tuning.cuh).
template <typename Constants>
struct PipeShape : Constants {
  using Constants::kAllStates, Constants::kSteps, Constants::kChannels, Constants::kStates;
  using Constants::kWidth, Constants::kRoleThreads;
  static constexpr int kGroups = kSteps / kGroup;
  // Tiles on their way from device memory, which takes longer than a tile of few states; of many
  // states, a second one would need more registers than there are.
  static constexpr int kUnderWay = kAllStates <= 16 ? 2 : 1;
  static constexpr int kLanes = kAllStates / kStates;  // that share a channel
  static constexpr int kParts = kLanes / 4;            // sums of a channel, one a quad of lanes
  static constexpr int kMultiple = 32 / kLanes * kChannels;  // channels of a consumer warp
  static constexpr int kConsumers = kWidth * kLanes / kChannels;
  // Quads of a thread of the other roles and a tile, at most.
  static constexpr int kStateQuads = kAllStates / kQuad;
  static constexpr int kItems = (kWidth / kQuad * kSteps + kRoleThreads - 1) / kRoleThreads;
  static constexpr int kStateItems = (kStateQuads * kSteps + kRoleThreads - 1) / kRoleThreads;
  static_assert(kWidth % kMultiple == 0 && kWidth % kQuad == 0 && kRoleThreads % 32 == 0);
  static_assert(kRoleThreads % kStateQuads == 0);  // a thread has the same states at all its steps
  static_assert(kSteps % kGroup == 0 && kSteps <= kMaxSteps && kParts * 4 * kStates == kAllStates);

  // Rows are padded so that those of neighbouring steps begin in other banks.
  struct alignas(16) Tile {
    float2 dt_du[kSteps][kWidth + 4];
    float B[kSteps][kAllStates], C[kSteps][kAllStates];
    float y[kSteps][kWidth * kParts + 8];  // sum_at has the order
  };
};

static_assert(ManyStates::kAllStates == kPipeStates);

// Four numbers of T as they lie in memory: unpacked where they are used, so that nothing waits for
// them before.
template <typename T>
struct RawQuad {
  Pack<uint32_t, kQuad * sizeof(T) / 4> bits;

  __device__ __forceinline__ void read(const T* from) {
    bits = *reinterpret_cast<const decltype(bits)*>(from);
  }
  __device__ __forceinline__ void unpack(float (&to)[kQuad]) const {
#pragma unroll
    for (int v = 0; v < kQuad; ++v) {
      if constexpr (std::is_same_v<T, float>) {
        to[v] = __uint_as_float(bits.values[v]);
      } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        const uint32_t two = bits.values[v / 2];
        to[v] = __uint_as_float(v % 2 ? two & 0xffff0000u : two << 16);
      } else {
        const uint32_t two = bits.values[v / 2];
        to[v] = __half2float(__ushort_as_half(static_cast<uint16_t>(v % 2 ? two >> 16 : two)));
      }
    }
  }
};

// One sequence of T as a producer or an epilogue thread walks it, forwards or backwards.
template <typename T>
struct Walk {
  T* start;    // the first step of the walk
  int stride;  // to the next one

  __device__ Walk(const mamba_selective_scan_params& p, const mamba_sequence& sequence,
                  int64_t batch, int64_t offset)
      : start(const_cast<T*>(row<T>(sequence, batch, walked(p, 0))) + offset),
        stride(static_cast<int>(p.reverse ? -sequence.step_stride : sequence.step_stride)) {}

  // The first step of a tile, all of which have the given steps.
  __device__ __forceinline__ T* tile(int tile_index, int steps) const {
    return start + int64_t{tile_index} * steps * stride;
  }
};

// The part of a tile that a producer or an epilogue thread has: a quad of channels at each of some
// steps.
template <typename S>
struct Items {
  int step[S::kItems], channel[S::kItems];
  bool exists[S::kItems];  // else channel is another that does, so that it can be read all the same

  __device__ Items(int64_t channels, int width, int thread) {
    const int quads = width / kQuad;
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      const int item = thread + i * S::kRoleThreads;
      const int at = item % quads * kQuad;
      step[i] = item / quads;
      exists[i] = step[i] < S::kSteps && at < channels;
      channel[i] = exists[i] ? at : 0;
    }
  }
};

__device__ __forceinline__ float4 four_parameters(const float* values) {
  return make_float4(values[0], values[1], values[2], values[3]);
}

}  // namespace pipe
}  // namespace mamba
