// From dt to the factors of a chunk (ssd_hopper_tiles.cuh): one warp a head, two steps a lane.
//
// Exponents are summed within blocks of 16 steps, and over whole blocks: no factor is a difference
// of sums over a longer way, which would lose digits where one step with a huge |dt A| stands among
// small ones. A step's exponent below kSmallest counts as kSmallest, where 2^x is 0 already: sums
// stay finite. Nothing of a step reaches a factor of the steps before it, so that NaN goes forward
// only.
#pragma once

#include "common/cuda/numeric.cuh"
#include "state_space_dual/cuda/ssd_hopper_tiles.cuh"

namespace mamba {
namespace hopper {

constexpr float kSmallest = -127.f;

// dt of one head of one sequence.
template <typename T>
class Steps {
 public:
  __device__ __forceinline__ Steps(const SsdHopperArguments& p, int batch, int head)
      : p_(p),
        dt_(static_cast<const T*>(p.dt) + batch * p.dt_batch_stride + head),
        bias_(p.dt_bias[head]),
        rate_(p.A[head] * kLog2e) {}

  // This lane's two steps of a chunk as they lie in memory.
  __device__ __forceinline__ void fetch(int chunk, bool wanted, T (&raw)[2]) const {
    const int step = chunk * kHopperChunk + 2 * (threadIdx.x & 31);
    const T* at = dt_ + step * p_.dt_step_stride;
    if (wanted && step < p_.length) raw[0] = __ldg(at);
    if (wanted && step + 1 < p_.length) raw[1] = __ldg(at + p_.dt_step_stride);
  }

  // The step size; 0 behind the end of the length. Comparisons pass NaN on.
  __device__ __forceinline__ float size(T raw, int step) const {
    float size = to_float(raw) + bias_;
    if (p_.dt_softplus) size = softplus<T>(size);
    size = size < p_.dt_min ? p_.dt_min : size;
    size = size > p_.dt_max ? p_.dt_max : size;
    return step < p_.length ? size : 0.f;
  }

  __device__ __forceinline__ float exponent(float size) const {
    const float exponent = size * rate_;
    return exponent < kSmallest ? kSmallest : exponent;
  }

 private:
  const SsdHopperArguments& p_;
  const T* dt_;
  float bias_, rate_;
};

// Of this lane's two steps of a chunk.
struct ChunkSteps {
  float size[2];
  float exponent[2];  // from the start of the steps' block of 16 through the step
  float rest[2];      // after the step to the end of the block
  float blocks[4];    // of whole blocks
  int block;

  template <typename T>
  __device__ __forceinline__ ChunkSteps(const Steps<T>& steps, int chunk, const T (&raw)[2]) {
    const int lane = threadIdx.x & 31, step = chunk * kHopperChunk + 2 * lane;
    float own[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      size[i] = steps.size(raw[i], step + i);
      own[i] = steps.exponent(size[i]);
    }
    float sum = own[0] + own[1];
#pragma unroll
    for (int distance = 1; distance < 8; distance *= 2) {
      const float before = __shfl_up_sync(~0u, sum, distance, 8);
      if ((lane & 7) >= distance) sum += before;
    }
    const float before = __shfl_up_sync(~0u, sum, 1, 8);
    exponent[0] = ((lane & 7) ? before : 0.f) + own[0];
    exponent[1] = exponent[0] + own[1];
#pragma unroll
    for (int i = 0; i < 4; ++i) blocks[i] = __shfl_sync(~0u, exponent[1], 8 * i + 7);
    block = lane >> 3;
    const float whole = __shfl_sync(~0u, exponent[1], lane | 7);
    rest[0] = whole - exponent[0];
    rest[1] = whole - exponent[1];
  }

  // The sum of the blocks after this lane's, up to block end.
  __device__ __forceinline__ float between(int end) const {
    float sum = 0.f;
#pragma unroll
    for (int i = 1; i < 4; ++i) {
      if (i > block && i < end) sum += blocks[i];
    }
    return sum;
  }

  __device__ __forceinline__ float before() const {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      if (i < block) sum += blocks[i];
    }
    return sum;
  }

  __device__ __forceinline__ float total() const {
    return (blocks[0] + blocks[1]) + (blocks[2] + blocks[3]);
  }

  // dt times the decay from each step to the end of the chunk and through what comes after.
  __device__ __forceinline__ float2 weights(float after) const {
    const float way = between(4) + after;
    return {size[0] * exp2_fast(rest[0] + way), size[1] * exp2_fast(rest[1] + way)};
  }

  __device__ __forceinline__ void write_factors(float* factors) const {
    const int lane = threadIdx.x & 31;
    const float log_size[2] = {log2_fast(size[0]),
                               log2_fast(size[1])};  // -inf of 0: its factors are 0
    const auto put = [&](int at, float first, float second) {
      reinterpret_cast<float2*>(factors + at)[lane] = {first, second};
    };
    put(Factors::kExponent, exponent[0], exponent[1]);
    put(Factors::kOwn, exponent[0] - log_size[0], exponent[1] - log_size[1]);
    const float2 to_end = weights(0.f);
    put(Factors::kToEnd, to_end.x, to_end.y);
    const float start = before();
    put(Factors::kFromStart, exp2_fast(start + exponent[0]), exp2_fast(start + exponent[1]));
    if (lane == 0) factors[Factors::kChunk] = exp2_fast(total());
#pragma unroll
    for (int end = 1; end < 4; ++end) {
      const float way = between(end);
      const bool earlier = block < end;
      put(Factors::kToBlock + (end - 1) * kHopperChunk,
          earlier ? exp2_fast(rest[0] + way + log_size[0]) : 0.f,
          earlier ? exp2_fast(rest[1] + way + log_size[1]) : 0.f);
    }
  }
};

}  // namespace hopper
}  // namespace mamba
