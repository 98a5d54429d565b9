// Scan for d_state up to 128, warp-specialised: consumer warps do nothing but the recurrence, and
// two other kinds of warps all the rest, ahead of them and behind, so that a step costs a consumer
// warp as few instructions and as little waiting as can be. They hand tiles of some steps to each
// other in three stages of shared memory:
//
//   producer warps  dt, dt u, B and C in fp32; the numbers of T for the next tile are under way
//   consumer warps  the recurrence, and the sums over the states
//   epilogue warps  skip, gate and store
//
// A consumer thread keeps some states of one or two channels. Its loop is pipelined by hand in
// groups of 4 steps, for the compiler moves no load over a store: while the recurrence walks a
// group, the next one is read, and with kAhead the exponentials of the one between are computed.
//
// Sums over the states of a channel are matrix products in tf32, which take one instruction where
// shuffles take six. Where four lanes have all states of a channel, for bf16 the matrices are h and
// C (C is exact in tf32, and what h loses is less than y loses when it is rounded); else they are
// the products C h and ones, and for the other types the part of them that tf32 drops is summed
// too. Channels of more than four lanes have a sum for every four; epilogue warps add those.
#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "common/cuda/mma.cuh"
#include "selective_scan/cuda/scan_stages.cuh"

namespace mamba {
namespace {

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

// Adds what the four lanes of a quad hold of one step, p, and of the next, q. Every lane gets both.
template <bool kKeepsRest>
__device__ __forceinline__ void add_quads(float p, float q, float& p_sum, float& q_sum) {
#if __CUDA_ARCH__ >= 800
  // Rows of the left matrix are a quad's step each, the right one is of ones; unused columns of the
  // result are copies.
  constexpr unsigned kOne = 0x3f800000;
  constexpr unsigned kTf32 = 0xffffe000;  // what the instruction reads of a number
  float copies[2];
  if constexpr (kKeepsRest) {
    const float p_rest = p - __uint_as_float(__float_as_uint(p) & kTf32);
    const float q_rest = q - __uint_as_float(__float_as_uint(q) & kTf32);
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %8}, {%9, %9, %9, %9};"
        : "=f"(p_sum), "=f"(copies[0]), "=f"(q_sum), "=f"(copies[1])
        : "r"(__float_as_uint(p)), "r"(__float_as_uint(q)), "r"(__float_as_uint(p_rest)),
          "r"(__float_as_uint(q_rest)), "r"(kOne), "f"(0.f));
  } else {
    asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=f"(p_sum), "=f"(copies[0]), "=f"(q_sum), "=f"(copies[1])
        : "r"(__float_as_uint(p)), "r"(__float_as_uint(q)), "r"(kOne), "f"(0.f));
  }
#else
#pragma unroll
  for (int apart = 1; apart < 4; apart *= 2) {
    p += __shfl_xor_sync(~0u, p, apart);
    q += __shfl_xor_sync(~0u, q, apart);
  }
  p_sum = p;
  q_sum = q;
#endif
}

// Sums over the quad's states of h C, for two channels at one step: h and C are this lane's.
template <int kStates>
__device__ __forceinline__ void multiply_states(const float (&h)[kStates],
                                                const float (&other_h)[kStates],
                                                const float (&C)[kStates], float& sum,
                                                float& other_sum) {
#if __CUDA_ARCH__ >= 800
  float d[4] = {};
#pragma unroll
  for (int j = 0; j < kStates; j += 2) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(h[j])), "r"(__float_as_uint(other_h[j])),
          "r"(__float_as_uint(h[j + 1])), "r"(__float_as_uint(other_h[j + 1])),
          "r"(__float_as_uint(C[j])), "r"(__float_as_uint(C[j + 1])));
  }
  sum = d[0];
  other_sum = d[2];
#else
  float own = 0.f, other = 0.f;
#pragma unroll
  for (int j = 0; j < kStates; ++j) {
    own += h[j] * C[j];
    other += other_h[j] * C[j];
  }
  add_quads<false>(own, other, sum, other_sum);
#endif
}

// One group of steps on its way through the consumers' loop.
template <typename S>
struct Loaded {
  float2 dt_du[S::kChannels][kGroup];
  float B[kGroup][S::kStates], C[kGroup][S::kStates];
};
template <typename S>
struct Ready {
  float decay[S::kChannels][kGroup][S::kStates], input[S::kChannels][kGroup][S::kStates];
  float C[kGroup][S::kStates];
};

template <typename S>
__device__ __forceinline__ void load(const typename S::Tile& tile, int group, int slot, int state,
                                     Loaded<S>& to) {
  using Numbers = Pack<float, S::kStates>;
#pragma unroll
  for (int t = 0; t < kGroup; ++t) {
    const int s = group * kGroup + t;
    const auto B = *reinterpret_cast<const Numbers*>(&tile.B[s][state]);
    const auto C = *reinterpret_cast<const Numbers*>(&tile.C[s][state]);
#pragma unroll
    for (int j = 0; j < S::kStates; ++j) {
      to.B[t][j] = B.values[j];
      to.C[t][j] = C.values[j];
    }
    const auto dt_du = *reinterpret_cast<const Pack<float2, S::kChannels>*>(&tile.dt_du[s][slot]);
#pragma unroll
    for (int c = 0; c < S::kChannels; ++c) to.dt_du[c][t] = dt_du.values[c];
  }
}

template <typename S>
__device__ __forceinline__ void make_ready(int group, const Loaded<S>& from,
                                           const float (&A)[S::kChannels][S::kStates],
                                           Ready<S>& to) {
#pragma unroll
  for (int t = 0; t < kGroup; ++t) {
#pragma unroll
    for (int j = 0; j < S::kStates; ++j) {
      to.C[t][j] = from.C[t][j];
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) {
        to.decay[c][t][j] = decay_of(from.dt_du[c][t].x, A[c][j], decay_shift(group * kGroup + t));
        to.input[c][t][j] = from.dt_du[c][t].y * from.B[t][j];
      }
    }
  }
}

// Where a row of y has the sum of this lane's quad; a warp's 32 lanes, of which 4 store a step
// each, then fill 8 neighbouring places of 4 rows.
template <typename S>
__device__ __forceinline__ int sum_at(int warp, int lane, int c) {
  return (warp * S::kChannels + c) * 8 + lane / 4;
}

// The recurrence over a group, and its sums to y.
template <typename T, typename S>
__device__ __forceinline__ void walk_group(const Ready<S>& ready, int group, int warp, int lane,
                                           float (&h)[S::kChannels][S::kStates],
                                           typename S::Tile& tile) {
  constexpr bool kKeepsRest = !std::is_same_v<T, __nv_bfloat16>;
  constexpr int kLast = S::kChannels - 1;
  float sums[S::kChannels][kGroup], y[S::kChannels][kGroup];
#pragma unroll
  for (int t = 0; t < kGroup; ++t) {
#pragma unroll
    for (int c = 0; c < S::kChannels; ++c) {
      y[c][t] = 0.f;
#pragma unroll
      for (int j = 0; j < S::kStates; ++j) {
        h[c][j] = ready.decay[c][t][j] * h[c][j] + ready.input[c][t][j];
        y[c][t] += ready.C[t][j] * h[c][j];
      }
    }
    // Two quads of lanes with different states would need different C.
    if constexpr (!kKeepsRest && S::kParts == 1) {
      float unused;
      multiply_states(h[0], h[kLast], ready.C[t], sums[0][t], kLast ? sums[kLast][t] : unused);
    }
  }
#pragma unroll
  for (int c = 0; c < S::kChannels; ++c) {
    if constexpr (kKeepsRest || S::kParts > 1) {
#pragma unroll
      for (int t = 0; t < kGroup; t += 2) {
        add_quads<kKeepsRest>(y[c][t], y[c][t + 1], sums[c][t], sums[c][t + 1]);
      }
    }
    const float low = lane & 1 ? sums[c][1] : sums[c][0];
    const float high = lane & 1 ? sums[c][3] : sums[c][2];
    tile.y[group * kGroup + lane % kGroup][sum_at<S>(warp, lane, c)] = lane & 2 ? high : low;
  }
}

template <typename T, typename S>
__device__ __forceinline__ void consume(const mamba_selective_scan_params& p, int64_t batch,
                                        int64_t first, int tile_count, int consumers,
                                        typename S::Tile* tiles) {
  const int thread = threadIdx.x;
  const int warp = thread / 32, lane = thread % 32;
  const int slot = thread / S::kLanes * S::kChannels;
  const int state = thread % S::kLanes * S::kStates;
  const int threads = consumers + S::kRoleThreads;  // of a hand-over
  float A[S::kChannels][S::kStates], h[S::kChannels][S::kStates];
#pragma unroll
  for (int c = 0; c < S::kChannels; ++c) {
    const int64_t channel = first + slot + c;
#pragma unroll
    for (int j = 0; j < S::kStates; ++j) {
      const int n = state + j;
      const bool exists = channel < p.d_inner && n < p.d_state;
      A[c][j] = exists ? p.A[channel * p.d_state + n] * kLog2e : 0.f;
      h[c][j] = exists && p.initial_state
                    ? p.initial_state[(batch * p.d_inner + channel) * p.d_state + n]
                    : 0.f;
    }
  }

  constexpr int kDepth = S::kAhead ? 2 : 1;  // groups from being read to being walked
  Loaded<S> loaded;
  Ready<S> ready;
  wait(kFilled, threads);
  load(tiles[0], 0, slot, state, loaded);
  if constexpr (S::kAhead) {
    make_ready(0, loaded, A, ready);
    load(tiles[0], 1, slot, state, loaded);
  }
  int stage = 0;
  for (int tile_index = 0; tile_index < tile_count; ++tile_index) {
    const int next_stage = stage + 1 < kStages ? stage + 1 : 0;
    auto& tile = tiles[stage];
    if (tile_index >= kStages) wait(kStored + stage, threads);
#pragma unroll
    for (int g = 0; g < S::kGroups; ++g) {
      Ready<S> next;
      make_ready(g + kDepth - 1, loaded, A, next);
      if (g + kDepth < S::kGroups) {
        load(tile, g + kDepth, slot, state, loaded);
      } else {
        if (g + kDepth == S::kGroups && tile_index + 1 < tile_count)
          wait(kFilled + next_stage, threads);
        load(tiles[next_stage], g + kDepth - S::kGroups, slot, state, loaded);
      }
      walk_group<T, S>(S::kAhead ? ready : next, g, warp, lane, h, tile);
      if constexpr (S::kAhead) ready = next;
    }
    arrive(kSummed + stage, threads);
    // Nobody waits for the last tiles to be read.
    if (tile_index + kStages < tile_count) arrive(kFree + stage, threads);
    stage = next_stage;
  }
#pragma unroll
  for (int c = 0; c < S::kChannels; ++c) {
    const int64_t channel = first + slot + c;
#pragma unroll
    for (int j = 0; j < S::kStates; ++j) {
      const int n = state + j;
      if (channel >= p.d_inner || n >= p.d_state) continue;
      p.last_state[(batch * p.d_inner + channel) * p.d_state + n] = h[c][j];
    }
  }
}

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

  Fetched even, odd;  // where one tile is under way, even has them all
  fetch(0, even);
  if (S::kUnderWay == 2) fetch(1, odd);
  for (int tile_index = 0; tile_index < tile_count; tile_index += S::kUnderWay) {
    produce_tile(tile_index, even);
    if (S::kUnderWay == 2 && tile_index + 1 < tile_count) produce_tile(tile_index + 1, odd);
  }
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

  Fetched even, odd;  // where one tile is under way, even has them all
  fetch(0, even);
  if (S::kUnderWay == 2) fetch(1, odd);
  for (int tile_index = 0; tile_index < tile_count; tile_index += S::kUnderWay) {
    produce_tile(tile_index, even);
    if (S::kUnderWay == 2 && tile_index + 1 < tile_count) produce_tile(tile_index + 1, odd);
  }
}

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

// width: channels of a block; its first threads, kLanes a channel or two, scan.
// kDepths: sixteens of the depth of dt_proj, where the scan does that too; else 0.
template <typename T, typename S, int kDepths>
__global__ void __launch_bounds__(S::kConsumers + 2 * S::kRoleThreads, S::kBlocks)
    scan_pipe_kernel(const __grid_constant__ mamba_selective_scan_params p,
                     const __grid_constant__ ScanDtProj proj, int width) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* tiles = reinterpret_cast<typename S::Tile*>(memory);
  const int consumers = width * S::kLanes / S::kChannels;
  const unsigned blocks = static_cast<unsigned>((p.d_inner + width - 1) / width);
  const int64_t batch = blockIdx.x / blocks, first = int64_t{blockIdx.x % blocks} * width;
  const int tile_count = static_cast<int>((p.length + S::kSteps - 1) / S::kSteps);
  const int rank = static_cast<int>(threadIdx.x) - consumers;  // among the other roles' threads
  if (rank < 0) {
    consume<T, S>(p, batch, first, tile_count, consumers, tiles);
  } else if (rank < S::kRoleThreads) {
    if constexpr (kDepths > 0) {
      produce_with_dt_proj<T, S, kDepths>(p, proj, batch, first, tile_count, consumers, width, rank,
                                          tiles);
    } else {
      produce<T, S>(p, batch, first, tile_count, consumers, width, rank, tiles);
    }
  } else {
    epilogue<T, S>(p, batch, first, tile_count, consumers, width, rank - S::kRoleThreads, tiles);
  }
}

// Runs body with the shape for p (an empty object, for its type) and a block's channels, which are
// not yet a multiple of anything.
template <typename Body>
auto with_shape(const mamba_selective_scan_params& p, Body body) {
  // So many channels a block that the blocks fill every multiprocessor once, or nearly.
  const int64_t blocks = std::max<int64_t>(1, current_gpu().multiprocessors / p.batch);
  const int64_t width = (p.d_inner + blocks - 1) / blocks;
  const auto with = [&](auto shape) {
    return body(shape, std::min<int64_t>(width, decltype(shape)::kWidth));
  };
  if (p.d_state > SomeStates::kAllStates) return with(PipeShape<ManyStates>{});
  if (p.d_state > ManyChannels::kAllStates) return with(PipeShape<SomeStates>{});
  if (width <= FewChannels::kWidth) return with(PipeShape<FewChannels>{});
  if (width <= SomeChannels::kWidth) return with(PipeShape<SomeChannels>{});
  if (width <= MoreChannels::kWidth) return with(PipeShape<MoreChannels>{});
  return with(PipeShape<ManyChannels>{});
}

template <typename T, typename S, int kDepths>
cudaError_t launch(const mamba_selective_scan_params& p, const ScanDtProj& proj, int64_t width,
                   cudaStream_t stream) {
  const auto kernel = scan_pipe_kernel<T, S, kDepths>;
  constexpr int kBytes = kStages * sizeof(typename S::Tile);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  constexpr int kMultiple = std::max(S::kMultiple, kQuad);
  width = (width + kMultiple - 1) / kMultiple * kMultiple;
  const int64_t blocks = (p.d_inner + width - 1) / width * p.batch;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const int threads = static_cast<int>(width) * S::kLanes / S::kChannels + 2 * S::kRoleThreads;
  // Not overlapping: blocks that start while another kernel runs pile up on the multiprocessors
  // that it leaves free, and 96 blocks on 36 of them take 77 us instead of 48 (1 x 1536 x 2048,
  // H200).
  kernel<<<static_cast<unsigned>(blocks), threads, kBytes, stream>>>(p, proj,
                                                                     static_cast<int>(width));
  return cudaGetLastError();
}

}  // namespace

bool pipe_fits(const mamba_selective_scan_params& p) {
  if (p.n_groups != 1 || p.d_state > kPipeStates || p.d_state % kQuad || p.d_inner % kQuad) {
    return false;
  }
  const size_t bytes = with_shape(
      p, [](auto shape, int64_t) { return kStages * sizeof(typename decltype(shape)::Tile); });
  if (current_gpu().shared_bytes < static_cast<int>(bytes)) return false;
  constexpr int64_t kMaxStride = INT32_MAX / (2 * kMaxSteps);
  const size_t element = p.dtype == MAMBA_FP32 ? 4 : 2;
  const auto fits = [&](const mamba_sequence& s) {
    return (element == 4 ? rows_aligned<16>(s, 4) : rows_aligned<8>(s, 2)) &&
           s.step_stride < kMaxStride && s.step_stride >= 0;
  };
  return fits(p.u) && fits(p.delta) && fits(p.B) && fits(p.C) && (!p.z.data || fits(p.z)) &&
         p.d_inner < kMaxStride && p.length < INT32_MAX && is_aligned<16>(p.y, 0, 1);
}

cudaError_t launch_scan_pipe(const mamba_selective_scan_params& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return with_shape(p, [&](auto shape, int64_t width) {
      return launch<T, decltype(shape), 0>(p, {}, width, stream);
    });
  });
}

bool scan_does_dt_proj(const mamba_selective_scan_params& p, const ScanDtProj& proj) {
  if (p.dtype == MAMBA_FP32 || current_gpu().major < 8) return false;
  if (p.length <= kFewSteps || narrow_fits(p) || mma_fits(p) || !pipe_fits(p)) return false;
  if (count_parts(p, p.batch, current_tuning()) > 1) return false;
  if (proj.depth != 3 * kDtDepth && proj.depth != 4 * kDtDepth) return false;
  return rows_aligned<8>(proj.dt, 2) && with_shape(p, [](auto shape, int64_t) {
           return std::is_same_v<decltype(shape), PipeShape<FewChannels>>;
         });
}

cudaError_t launch_scan(const mamba_selective_scan_params& p, const ScanDtProj& proj,
                        cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return with_shape(p, [&](auto shape, int64_t width) {
      using S = decltype(shape);
      if constexpr (std::is_same_v<T, float> || !std::is_same_v<S, PipeShape<FewChannels>>) {
        return cudaErrorNotSupported;
      } else if (proj.depth == 3 * kDtDepth) {
        return launch<T, S, 3>(p, proj, width, stream);
      } else {
        return launch<T, S, 4>(p, proj, width, stream);
      }
    });
  });
}

}  // namespace mamba
