// Scan for d_state up to 4, whose arithmetic is so little that moving the tensors is what it costs.
//
// A warp's lanes are neighbouring channels, and the warps of a block are neighbouring chunks of a
// few steps: so many loads are under way at once that memory is busy, which a thread that walked a
// whole length alone could not do. All steps of a tile, a chunk a warp, go through
//
//   1. dt, dt u and the decays of the chunk; its last state from a start of zeros, and its decay
//   2. through shared memory, from the chunks before it: the state that it starts from
//   3. the recurrence once more from there, with y
//
// The second walk costs one multiply-add a state and step; every exponential is computed once. The
// numbers of T for the next tile are under way meanwhile.
#include "common/cuda/tuning.cuh"
#include "selective_scan/cuda/scan.cuh"

namespace mamba {
namespace {

constexpr int kLanes = 32;  // of a warp, a channel each
constexpr size_t kMostSharedBytes = 48 * 1024;

// What follows from the chunk's constants (tuning.cuh).
template <typename Constants>
struct NarrowShape : Constants {
  using Constants::kStates, Constants::kSteps, Constants::kWarps;
  static constexpr int kBlocks = Constants::kThreads / (kWarps * kLanes);
  // B and C of a chunk, a number a lane at a time.
  static constexpr int kNumbers = kSteps * 2 * kStates;
  static constexpr int kItems = (kNumbers + kLanes - 1) / kLanes;

  // What one warp tells the others of its chunk.
  struct Chunk {
    float2 decay_state[kStates][kLanes];
  };
  // Chunks of two tiles, so that one barrier a tile does.
  struct alignas(16) Warp {
    Chunk chunks[2];
    float BC[kSteps][2][kStates];  // this warp's own
  };
  static_assert(kWarps * sizeof(Warp) <= kMostSharedBytes);
};

// One sequence as the walk meets it, forwards or backwards.
template <typename T>
struct Walk {
  T* start;  // its first step, of the first sequence
  int64_t batch_stride;
  int stride;  // to the next step

  Walk(const mamba_selective_scan_params& p, const mamba_sequence& s)
      : start(static_cast<T*>(const_cast<void*>(s.data)) +
              (p.reverse ? (p.length - 1) * s.step_stride : 0)),
        batch_stride(s.batch_stride),
        stride(static_cast<int>(p.reverse ? -s.step_stride : s.step_stride)) {}
};

template <typename T>
struct Walks {
  Walk<T> u, delta, B, C, z, y;

  explicit Walks(const mamba_selective_scan_params& p)
      : u(p, p.u),
        delta(p, p.delta),
        B(p, p.B),
        C(p, p.C),
        z(p, p.z.data ? p.z : p.u),
        y(p, {p.y, p.length * p.d_inner, p.d_inner}) {}
};

// Numbers of T on their way from device memory.
template <typename T, typename S>
struct Fetched {
  T u[S::kSteps], delta[S::kSteps];
  T BC[S::kItems];
};

using Yes = std::true_type;
using No = std::false_type;

template <typename T, typename S>
__global__ void __launch_bounds__(S::kWarps* kLanes, S::kBlocks)
    scan_narrow_kernel(const __grid_constant__ mamba_selective_scan_params p,
                       const __grid_constant__ Walks<T> walks) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* shared = reinterpret_cast<typename S::Warp*>(memory);
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int states = static_cast<int>(p.d_state), length = static_cast<int>(p.length);

  const int group_width = static_cast<int>(p.d_inner / p.n_groups);
  const unsigned blocks_a_group = (group_width + kLanes - 1) / kLanes;
  const unsigned groups = static_cast<unsigned>(p.n_groups);
  const int group = blockIdx.x / blocks_a_group % groups;
  const int64_t batch = blockIdx.x / blocks_a_group / groups;
  const int in_group = blockIdx.x % blocks_a_group * kLanes + lane;
  const bool exists = in_group < group_width;
  // Lanes past the end work on the group's first channel, and store nothing.
  const int channel = group * group_width + (exists ? in_group : 0);
  const int64_t state_at = (batch * p.d_inner + channel) * states;

  const float bias = p.delta_bias[channel], D = p.D[channel];
  float A[S::kStates], carry[S::kStates];
#pragma unroll
  for (int n = 0; n < S::kStates; ++n) {
    A[n] = n < states ? p.A[int64_t{channel} * states + n] * kLog2e : 0.f;
    carry[n] = n < states && p.initial_state ? p.initial_state[state_at + n] : 0.f;
  }

  // Where the steps of this warp's chunk begin.
  const auto begin = [&](const Walk<T>& walk, int step, int at) {
    return walk.start + batch * walk.batch_stride + int64_t{step} * walk.stride + at;
  };
  int start = warp * S::kSteps;
  const T *u_row = begin(walks.u, start, channel), *delta_row = begin(walks.delta, start, channel);
  const T* z_row = begin(walks.z, start, channel);
  T* y_row = begin(walks.y, start, channel);
  const T* BC_row[S::kItems];
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) {
    const int item = lane + i * kLanes, n = item % S::kStates;
    const bool is_C = item / S::kStates % 2;
    const int step = start + item / (2 * S::kStates);
    BC_row[i] = begin(is_C ? walks.C : walks.B, step, group * states + n);
  }
  constexpr int kTileSteps = S::kWarps * S::kSteps;
  const bool has_softplus = p.delta_softplus, has_gate = p.z.data;

  // Fetches the chunk at which the rows stand, of which so many steps exist.
  const auto fetch = [&](int left, Fetched<T, S>& to) {
    const auto rows = [&](auto whole) {
#pragma unroll
      for (int t = 0; t < S::kSteps; ++t) {
        if (!decltype(whole)::value && t >= left) continue;
        to.u[t] = u_row[t * walks.u.stride];
        to.delta[t] = delta_row[t * walks.delta.stride];
      }
    };
    if (left >= S::kSteps) {
      rows(Yes{});
    } else {
      rows(No{});
    }
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      const int item = lane + i * kLanes, t = item / (2 * S::kStates), n = item % S::kStates;
      to.BC[i] = from_float<T>(0.f);
      if (t < S::kSteps && t < left && n < states) to.BC[i] = *BC_row[i];
    }
  };

  Fetched<T, S> fetched;
  if (S::kAhead && start < length) fetch(length - start, fetched);
  auto& BC = shared[warp].BC;

  int stage = 0;
  for (int tile = 0; tile < length; tile += kTileSteps, start += kTileSteps, stage ^= 1) {
    const int left = length - start;  // steps of this chunk and all after it; none past the end
    float u[S::kSteps], du[S::kSteps], decay[S::kSteps][S::kStates];
    float dt_sum = 0.f, h[S::kStates] = {};
    const auto prepare = [&](auto whole) {
#pragma unroll
      for (int t = 0; t < S::kSteps; ++t) {
        const bool is_step = decltype(whole)::value || t < left;
        u[t] = is_step ? to_float(fetched.u[t]) : 0.f;
        const float plain = to_float(fetched.delta[t]) + bias;
        const float soft = softplus<T>(plain);
        float dt = has_softplus ? soft : plain;
        if (!is_step) dt = 0.f;  // which leaves a state as it is
        dt_sum += dt;
        du[t] = dt * u[t];
#pragma unroll
        for (int n = 0; n < S::kStates; ++n) {
          decay[t][n] = decay_of(dt, A[n], decay_shift(t));
          h[n] = decay[t][n] * h[n] + du[t] * BC[t][0][n];
        }
      }
    };
    if (left > 0) {
      if (!S::kAhead) fetch(left, fetched);
      __syncwarp();  // all lanes are through with the chunk before
#pragma unroll
      for (int i = 0; i < S::kItems; ++i) {
        const int item = lane + i * kLanes;
        if (item < S::kNumbers) (&BC[0][0][0])[item] = to_float(fetched.BC[i]);
      }
      __syncwarp();
      if (left >= S::kSteps) {
        prepare(Yes{});
      } else {
        prepare(No{});
      }
    }
    T z[S::kSteps];
    if (has_gate) {
#pragma unroll
      for (int t = 0; t < S::kSteps; ++t) {
        if (t < left) z[t] = z_row[t * walks.z.stride];
      }
    }
    u_row += int64_t{kTileSteps} * walks.u.stride;
    delta_row += int64_t{kTileSteps} * walks.delta.stride;
    z_row += int64_t{kTileSteps} * walks.z.stride;
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      const bool is_C = (lane + i * kLanes) / S::kStates % 2;
      BC_row[i] += int64_t{kTileSteps} * (is_C ? walks.C.stride : walks.B.stride);
    }
    if (S::kAhead && left > kTileSteps) fetch(left - kTileSteps, fetched);

#pragma unroll
    for (int n = 0; n < S::kStates; ++n) {
      shared[warp].chunks[stage].decay_state[n][lane] =
          make_float2(decay_of(dt_sum, A[n], kDecayShift), h[n]);
    }
    __syncthreads();
    // Every warp walks all chunks of the tile, so that each knows what the next tile starts from.
#pragma unroll
    for (int other = 0; other < S::kWarps; ++other) {
#pragma unroll
      for (int n = 0; n < S::kStates; ++n) {
        if (other == warp) h[n] = carry[n];
        const float2 chunk = shared[other].chunks[stage].decay_state[n][lane];
        carry[n] = chunk.x * carry[n] + chunk.y;
      }
    }

    const auto finish = [&](auto whole, auto gated) {
#pragma unroll
      for (int t = 0; t < S::kSteps; ++t) {
        float y = D * u[t];
#pragma unroll
        for (int n = 0; n < S::kStates; ++n) {
          h[n] = decay[t][n] * h[n] + du[t] * BC[t][0][n];
          y += BC[t][1][n] * h[n];
        }
        if (decltype(gated)::value) y *= silu<T>(to_float(z[t]));
        if (exists && (decltype(whole)::value || t < left)) {
          y_row[t * walks.y.stride] = from_float<T>(y);
        }
      }
    };
    if (left >= S::kSteps) {
      has_gate ? finish(Yes{}, Yes{}) : finish(Yes{}, No{});
    } else if (left > 0) {
      has_gate ? finish(No{}, Yes{}) : finish(No{}, No{});
    }
    y_row += int64_t{kTileSteps} * walks.y.stride;
  }

  if (warp != 0 || !exists) return;
#pragma unroll
  for (int n = 0; n < S::kStates; ++n) {
    if (n < states) p.last_state[state_at + n] = carry[n];
  }
}

static_assert(NarrowOf4States::kStates == kNarrowStates);
static_assert(NarrowFewOf4States::kStates == kNarrowStates);

template <typename T, typename Constants>
cudaError_t launch(const mamba_selective_scan_params& p, cudaStream_t stream) {
  using S = NarrowShape<Constants>;
  const int64_t group_width = p.d_inner / p.n_groups;
  const int64_t blocks = (group_width + kLanes - 1) / kLanes * p.n_groups * p.batch;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  constexpr size_t kBytes = S::kWarps * sizeof(typename S::Warp);
  scan_narrow_kernel<T, S>
      <<<static_cast<unsigned>(blocks), S::kWarps * kLanes, kBytes, stream>>>(p, Walks<T>(p));
  return cudaGetLastError();
}

}  // namespace

bool narrow_fits(const mamba_selective_scan_params& p) {
  // Steps are counted in 32 bits, and so is a chunk's distance.
  constexpr int64_t kMaxStride = INT32_MAX / 64;
  const auto fits = [](const mamba_sequence& s) {
    return s.step_stride > -kMaxStride && s.step_stride < kMaxStride;
  };
  return p.d_state <= kNarrowStates && p.length < INT32_MAX / 2 && p.d_inner < kMaxStride &&
         fits(p.u) && fits(p.delta) && fits(p.B) && fits(p.C) && (!p.z.data || fits(p.z));
}

cudaError_t launch_scan_narrow(const mamba_selective_scan_params& p, cudaStream_t stream) {
  const bool few = p.batch * p.d_inner <= kFewNarrowChannels;
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (p.d_state == 1 && few) return launch<T, NarrowFewOf1State>(p, stream);
    if (p.d_state == 1) return launch<T, NarrowOf1State>(p, stream);
    if (p.d_state == 2) return launch<T, NarrowOf2States>(p, stream);
    if (few) return launch<T, NarrowFewOf4States>(p, stream);
    return launch<T, NarrowOf4States>(p, stream);
  });
}

}  // namespace mamba
