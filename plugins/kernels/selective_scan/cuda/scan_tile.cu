// Scan with every warp doing all the work of its channels, tile of time after tile: what fills a
// GPU when there are many channels, and fits any d_state up to 256.
//
// A thread keeps some states of each of kChannels channels in registers; kLanes neighbouring lanes
// share a channel's states (tuning.cuh has the tiles). Reads from shared memory, not exponentials,
// would bound the loop if a thread had one channel: B and C are read once for all of a thread's
// channels.
//
// The tile that is next travels from device memory (cp.async) while this one is computed. dt =
// softplus (delta + bias) and dt u are computed once an element, for all lanes of the channel,
// before the loop over the tile's steps; skip and gate once an element after it.
#include "common/cuda/tuning.cuh"
#include "selective_scan/cuda/scan.cuh"

namespace mamba {
namespace {

__device__ __forceinline__ void copy_16(void* to, const void* from, bool wanted) {
#if __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = wanted ? 16 : 0;  // the rest of the 16 is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
#else
  *static_cast<uint4*>(to) = wanted ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int Pending>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

// Which reads may be 16 bytes wide.
struct Alignment {
  bool channels;  // u, delta, z and y
  bool states;    // B and C
};

// What follows from the tile's constants (tuning.cuh) and the type.
template <typename T, typename Constants>
struct Shape : Constants {
  using Constants::kLanes, Constants::kChannels, Constants::kThreads, Constants::kAllStates;
  static constexpr int kSteps = Constants::kSteps / (kIsWide<T> ? 2 : 1);
  static constexpr int kWidth = kThreads / kLanes * kChannels;  // channels of a block
  static constexpr int kVector = 16 / sizeof(T);
  static_assert(kWidth % kVector == 0 && kAllStates % kVector == 0);

  // A tile as it is in device memory.
  struct alignas(16) Raw {
    T u[kSteps][kWidth], delta[kSteps][kWidth], z[kSteps][kWidth];
    T B[kSteps][kAllStates], C[kSteps][kAllStates];
  };
  struct alignas(16) Shared {
    Raw raw[2];
    float dt[kSteps][kWidth], du[kSteps][kWidth];
    float y[kSteps][kWidth];
    float B[kSteps][kAllStates], C[kSteps][kAllStates];
    float bias[kWidth], D[kWidth];
  };
};

static_assert(TileOf256States::kAllStates == kMaxTileStates);

// What a block works on.
struct Block {
  int64_t batch;
  int64_t group;
  int64_t first;       // its first channel, counted over all groups
  int count;           // its channels that exist
  int64_t begin, end;  // its steps of the walk
  int part;
};

__device__ __forceinline__ Block find_block(const mamba_selective_scan_params& p,
                                            const ScanParts& parts, int width) {
  const int64_t group_width = p.d_inner / p.n_groups;
  const unsigned blocks_a_group = static_cast<unsigned>((group_width + width - 1) / width);
  unsigned index = blockIdx.x;
  Block block;
  const int64_t first = static_cast<int64_t>(index % blocks_a_group) * width;
  index /= blocks_a_group;
  block.group = index % p.n_groups;
  index /= static_cast<unsigned>(p.n_groups);
  block.batch = index % p.batch;
  block.part = static_cast<int>(index / p.batch);
  block.first = block.group * group_width + first;
  block.count = static_cast<int>(group_width - first < width ? group_width - first : width);
  block.begin = block.part * parts.part_length;
  block.end = block.begin + parts.part_length;
  if (block.end > p.length) block.end = p.length;
  return block;
}

// Starts moving Steps rows of Width numbers, of which count exist, to shared memory.
template <typename T, int Steps, int Width, int Threads>
__device__ __forceinline__ void fetch_rows(const mamba_selective_scan_params& p,
                                           const mamba_sequence& sequence, int64_t offset,
                                           int count, bool is_aligned, const Block& block,
                                           int64_t step, T (*to)[Width]) {
  constexpr int kVector = 16 / sizeof(T);
  const T* start =
      static_cast<const T*>(sequence.data) + block.batch * sequence.batch_stride + offset;
  if (is_aligned) {
    constexpr int kVectors = Width / kVector;
#pragma unroll
    for (int i = threadIdx.x; i < Steps * kVectors; i += Threads) {
      const int s = i / kVectors, at = i % kVectors * kVector;
      const bool exists = step + s < block.end && at < count;
      const int64_t from = exists ? walked(p, step + s) * sequence.step_stride + at : 0;
      copy_16(&to[s][at], start + from, exists);
    }
  } else {
    for (int i = threadIdx.x; i < Steps * Width; i += Threads) {
      const int s = i / Width, at = i % Width;
      const bool exists = step + s < block.end && at < count;
      to[s][at] =
          exists ? start[walked(p, step + s) * sequence.step_stride + at] : from_float<T>(0.f);
    }
  }
}

template <typename T, typename S>
__device__ __forceinline__ void fetch(const mamba_selective_scan_params& p, const Block& block,
                                      Alignment aligned, bool has_y, int64_t step,
                                      typename S::Raw& raw) {
  const int states = static_cast<int>(p.d_state);
  const int64_t group_offset = block.group * p.d_state;
  fetch_rows<T, S::kSteps, S::kWidth, S::kThreads>(p, p.u, block.first, block.count,
                                                   aligned.channels, block, step, raw.u);
  fetch_rows<T, S::kSteps, S::kWidth, S::kThreads>(p, p.delta, block.first, block.count,
                                                   aligned.channels, block, step, raw.delta);
  fetch_rows<T, S::kSteps, S::kAllStates, S::kThreads>(p, p.B, group_offset, states, aligned.states,
                                                       block, step, raw.B);
  if (has_y) {
    fetch_rows<T, S::kSteps, S::kAllStates, S::kThreads>(p, p.C, group_offset, states,
                                                         aligned.states, block, step, raw.C);
    if (p.z.data) {
      fetch_rows<T, S::kSteps, S::kWidth, S::kThreads>(p, p.z, block.first, block.count,
                                                       aligned.channels, block, step, raw.z);
    }
  }
  commit_copies();
}

// dt, dt u, B and C of a tile in fp32. Steps past the end get dt = 0, which leaves a state as it
// is.
template <typename T, typename S>
__device__ __forceinline__ void prepare(const mamba_selective_scan_params& p, const Block& block,
                                        int64_t step, const typename S::Raw& raw,
                                        typename S::Shared& shared) {
  constexpr int kVectors = S::kWidth / S::kVector;
#pragma unroll 2
  for (int i = threadIdx.x; i < S::kSteps * kVectors; i += S::kThreads) {
    const int s = i / kVectors, at = i % kVectors * S::kVector;
    const auto u = *reinterpret_cast<const Pack<T, S::kVector>*>(&raw.u[s][at]);
    const auto delta = *reinterpret_cast<const Pack<T, S::kVector>*>(&raw.delta[s][at]);
    const bool exists = step + s < block.end;
#pragma unroll
    for (int j = 0; j < S::kVector; j += 4) {
      Pack<float, 4> dt, du;
      const auto bias = *reinterpret_cast<const Pack<float, 4>*>(&shared.bias[at + j]);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        float value = to_float(delta.values[j + v]) + bias.values[v];
        if (p.delta_softplus) value = softplus<T>(value);
        if (!exists) value = 0.f;
        dt.values[v] = value;
        du.values[v] = value * to_float(u.values[j + v]);
      }
      *reinterpret_cast<Pack<float, 4>*>(&shared.dt[s][at + j]) = dt;
      *reinterpret_cast<Pack<float, 4>*>(&shared.du[s][at + j]) = du;
    }
  }
  constexpr int kStateVectors = S::kAllStates / S::kVector;
  for (int i = threadIdx.x; i < S::kSteps * kStateVectors; i += S::kThreads) {
    const int s = i / kStateVectors, at = i % kStateVectors * S::kVector;
    const auto B = *reinterpret_cast<const Pack<T, S::kVector>*>(&raw.B[s][at]);
    const auto C = *reinterpret_cast<const Pack<T, S::kVector>*>(&raw.C[s][at]);
#pragma unroll
    for (int j = 0; j < S::kVector; ++j) {
      shared.B[s][at + j] = to_float(B.values[j]);
      shared.C[s][at + j] = to_float(C.values[j]);
    }
  }
}

// Skip and gate of a tile, and the store.
template <typename T, typename S>
__device__ __forceinline__ void finish(const mamba_selective_scan_params& p, const Block& block,
                                       Alignment aligned, int64_t step, const typename S::Raw& raw,
                                       const typename S::Shared& shared) {
  constexpr int kVectors = S::kWidth / S::kVector;
  T* out = static_cast<T*>(p.y) + block.batch * p.length * p.d_inner + block.first;
#pragma unroll 2
  for (int i = threadIdx.x; i < S::kSteps * kVectors; i += S::kThreads) {
    const int s = i / kVectors, at = i % kVectors * S::kVector;
    if (step + s >= block.end || at >= block.count) continue;
    const auto u = *reinterpret_cast<const Pack<T, S::kVector>*>(&raw.u[s][at]);
    const auto z = *reinterpret_cast<const Pack<T, S::kVector>*>(&raw.z[s][at]);
    Pack<T, S::kVector> y;
#pragma unroll
    for (int j = 0; j < S::kVector; j += 4) {
      const auto sum = *reinterpret_cast<const Pack<float, 4>*>(&shared.y[s][at + j]);
      const auto D = *reinterpret_cast<const Pack<float, 4>*>(&shared.D[at + j]);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        float value = sum.values[v] + D.values[v] * to_float(u.values[j + v]);
        if (p.z.data) value *= silu<T>(to_float(z.values[j + v]));
        y.values[j + v] = from_float<T>(value);
      }
    }
    T* to = out + walked(p, step + s) * p.d_inner + at;
    if (aligned.channels) {
      *reinterpret_cast<Pack<T, S::kVector>*>(to) = y;
    } else {
#pragma unroll
      for (int j = 0; j < S::kVector; ++j) {
        if (at + j < block.count) to[j] = y.values[j];
      }
    }
  }
}

// Sums each of Count values over Lanes neighbouring lanes. Lane i Lanes / Count, for i < Count,
// returns the sum of value i: halving the values while the lanes are halved takes fewer shuffles
// than summing each.
template <int Lanes, int Count>
__device__ __forceinline__ float sum_over_lanes(const float (&values)[Count], int lane) {
  if constexpr (Count == 1) {
    float sum = values[0];
#pragma unroll
    for (int apart = Lanes / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
    return sum;
  } else {
    const bool is_upper = lane & (Lanes / 2);  // keeps the upper half of the values
    float kept[Count / 2];
#pragma unroll
    for (int i = 0; i < Count / 2; ++i) {
      const float mine = is_upper ? values[Count / 2 + i] : values[i];
      const float other = is_upper ? values[i] : values[Count / 2 + i];
      kept[i] = mine + __shfl_xor_sync(~0u, other, Lanes / 2);
    }
    return sum_over_lanes<Lanes / 2, Count / 2>(kept, lane);
  }
}

template <typename T, typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    scan_tile_kernel(const __grid_constant__ mamba_selective_scan_params p,
                     const __grid_constant__ ScanParts parts, Alignment aligned) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<typename S::Shared*>(memory);
  const Block block = find_block(p, parts, S::kWidth);
  const bool has_y = parts.pass != kStates;

  fetch<T, S>(p, block, aligned, has_y, block.begin, shared.raw[0]);
  for (int i = threadIdx.x; i < S::kWidth; i += S::kThreads) {
    const bool exists = i < block.count;
    shared.bias[i] = exists ? p.delta_bias[block.first + i] : 0.f;
    shared.D[i] = exists ? p.D[block.first + i] : 0.f;
  }

  // States n of this thread: 4 lane + {0..3}, and as many again half of all states later, so that
  // neighbouring lanes read neighbouring 16 bytes.
  const int lane = threadIdx.x % S::kLanes;
  const int slot = threadIdx.x / S::kLanes * S::kChannels;  // its first channel in the block
  const int states = static_cast<int>(p.d_state);
  const auto state_of = [lane](int j) { return j / 4 * (S::kLanes * 4) + lane * 4 + j % 4; };
  const int64_t sequence_state = (block.batch * p.d_inner + block.first) * p.d_state;
  const int64_t part_state = block.part * p.batch * p.d_inner * p.d_state;

  float h[S::kChannels][S::kStatesAThread], A[S::kChannels][S::kStatesAThread];
  float dt_sum[S::kChannels] = {};
  const float* start = parts.pass == kOutputs  ? parts.states + part_state
                       : parts.pass == kStates ? nullptr
                                               : p.initial_state;
#pragma unroll
  for (int c = 0; c < S::kChannels; ++c) {
#pragma unroll
    for (int j = 0; j < S::kStatesAThread; ++j) {
      const int n = state_of(j);
      const bool exists = n < states && slot + c < block.count;
      const int64_t at = int64_t(slot + c) * p.d_state + n;
      A[c][j] = exists ? p.A[block.first * p.d_state + at] * kLog2e : 0.f;
      h[c][j] = exists && start ? start[sequence_state + at] : 0.f;
    }
  }

  int stage = 0;
  for (int64_t step = block.begin; step < block.end; step += S::kSteps, stage ^= 1) {
    if (step + S::kSteps < block.end) {
      fetch<T, S>(p, block, aligned, has_y, step + S::kSteps, shared.raw[stage ^ 1]);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    prepare<T, S>(p, block, step, shared.raw[stage], shared);
    __syncthreads();

#pragma unroll 8
    for (int s = 0; s < S::kSteps; ++s) {
      float B[S::kStatesAThread], C[S::kStatesAThread];
#pragma unroll
      for (int j = 0; j < S::kStatesAThread; j += 4) {
        *reinterpret_cast<float4*>(&B[j]) =
            *reinterpret_cast<const float4*>(&shared.B[s][state_of(j)]);
        *reinterpret_cast<float4*>(&C[j]) =
            *reinterpret_cast<const float4*>(&shared.C[s][state_of(j)]);
      }
      const auto dt = *reinterpret_cast<const Pack<float, S::kChannels>*>(&shared.dt[s][slot]);
      const auto du = *reinterpret_cast<const Pack<float, S::kChannels>*>(&shared.du[s][slot]);
      float sums[S::kChannels];
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) {
        float even = 0.f, odd = 0.f;
#pragma unroll
        for (int j = 0; j < S::kStatesAThread; ++j) {
          h[c][j] = decay_of(dt.values[c], A[c][j], decay_shift(s)) * h[c][j] + du.values[c] * B[j];
          float& sum = j % 2 ? odd : even;
          sum += C[j] * h[c][j];
        }
        sums[c] = even + odd;
        dt_sum[c] += dt.values[c];
      }
      if constexpr (S::kLanes >= S::kChannels) {
        const float y = sum_over_lanes<S::kLanes, S::kChannels>(sums, lane);
        constexpr int kShare = S::kLanes / S::kChannels;  // lanes that hold the same sum
        if (lane % kShare == 0) shared.y[s][slot + lane / kShare] = y;
      } else {
        static_assert(S::kLanes == 1);
#pragma unroll
        for (int c = 0; c < S::kChannels; ++c) shared.y[s][slot + c] = sums[c];
      }
    }
    if (has_y) {
      __syncthreads();
      finish<T, S>(p, block, aligned, step, shared.raw[stage], shared);
    }
    // The raw tile just used is fetched over in the next turn, after everybody is here.
    __syncthreads();
  }

  if (parts.pass == kOutputs && block.part != parts.count - 1) return;
  float* last = parts.pass == kStates ? parts.states + part_state : p.last_state;
#pragma unroll
  for (int c = 0; c < S::kChannels; ++c) {
    if (slot + c >= block.count) continue;
#pragma unroll
    for (int j = 0; j < S::kStatesAThread; ++j) {
      const int n = state_of(j);
      if (n < states) last[sequence_state + int64_t(slot + c) * p.d_state + n] = h[c][j];
    }
    if (parts.pass == kStates && lane == 0) {
      parts.dt_sums[(block.part * p.batch + block.batch) * p.d_inner + block.first + slot + c] =
          dt_sum[c];
    }
  }
}

template <typename T, typename S>
cudaError_t launch(const mamba_selective_scan_params& p, const ScanParts& parts,
                   cudaStream_t stream) {
  const int64_t group_width = p.d_inner / p.n_groups;
  const int64_t blocks_a_group = (group_width + S::kWidth - 1) / S::kWidth;
  const int64_t blocks = blocks_a_group * p.n_groups * p.batch * parts.count;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;

  constexpr size_t kElement = sizeof(T);
  const bool whole_vectors = group_width % S::kVector == 0 && p.d_inner % S::kVector == 0;
  const Alignment aligned = {
      whole_vectors && rows_aligned<16>(p.u, kElement) && rows_aligned<16>(p.delta, kElement) &&
          (!p.z.data || rows_aligned<16>(p.z, kElement)) && is_aligned<16>(p.y, 0, kElement),
      p.d_state % S::kVector == 0 && rows_aligned<16>(p.B, kElement) &&
          rows_aligned<16>(p.C, kElement)};
  const auto kernel = scan_tile_kernel<T, S>;
  constexpr int kBytes = sizeof(typename S::Shared);
  // Once a device and kernel would do; the call costs under a microsecond and needs no lock.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(blocks), S::kThreads, kBytes, stream>>>(p, parts, aligned);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_scan_tile(const mamba_selective_scan_params& p, const ScanParts& parts,
                             cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto with = [&](auto tile) {
      return launch<T, Shape<T, decltype(tile)>>(p, parts, stream);
    };
    if (p.d_state <= TileOf8States::kAllStates) return with(TileOf8States{});
    if (p.d_state <= TileOf16States::kAllStates) return with(TileOf16States{});
    if (p.d_state <= TileOf32States::kAllStates) return with(TileOf32States{});
    if (p.d_state <= TileOf64States::kAllStates) return with(TileOf64States{});
    if (p.d_state <= TileOf128States::kAllStates) return with(TileOf128States{});
    return with(TileOf256States{});
  });
}

}  // namespace mamba
