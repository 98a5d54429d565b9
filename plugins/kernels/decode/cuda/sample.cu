// The choice of the next token from logits, by mamba_export/generation/sampling.py's rules:
// repetition penalty, temperature, top-k, top-p. A cluster of blocks a sequence.
//
// On an H100, 1 / 8 / 64 rows of 50280 fp16 logits take 5.4 / 5.5 / 8.0 us for the best, 20 / 26 /
// 44 us for top-k 50, 30 / 31 / 51 for top-p 0.9. One block a row, which found thresholds a bit at
// a time, took 10.6 / 11.3 / 15.3, 161 / 160 / 217 and 240 / 238 / 253.
#include <cuda_runtime.h>

#include <type_traits>

#include "common/cuda/status.h"
#include "decode/cuda/threshold.cuh"
#include "mamba_decode.h"

namespace mamba {
namespace choice {
namespace {

struct Shared {
  Thresholds thresholds;
  mamba_choice_options options;
  int slot;
  double draw;
  Mass best[kMostBlocks];  // of every block of the cluster
  Mass masses[kMostBlocks];
  unsigned int found[kMostBlocks];  // flags
};

// What a thread, a block or a row found: kOdd for a number that is none or +infinity, kSome for one
// above -infinity.
constexpr unsigned int kOdd = 1, kSome = 2;

__device__ void warp_best(Mass* best, unsigned int* found) {
  for (int offset = 16; offset > 0; offset /= 2) {
    *best = max(*best, __shfl_xor_sync(~0u, *best, offset));
    *found |= __shfl_xor_sync(~0u, *found, offset);
  }
}

// The best of a row, for every thread of its cluster.
__device__ void row_best(Mass* best, unsigned int* found, Shared* s) {
  __shared__ unsigned int flags[kWarps];
  const int lane = threadIdx.x % 32;
  warp_best(best, found);
  if (lane == 0) {
    s->thresholds.warps[threadIdx.x / 32] = *best;
    flags[threadIdx.x / 32] = *found;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    *best = s->thresholds.warps[lane];
    *found = flags[lane];
    warp_best(best, found);
  }
  cluster_wait();  // for their start
  if (static_cast<int>(threadIdx.x) < cluster_blocks()) {
    in_block(s->best, lane)[cluster_rank()] = *best;
    in_block(s->found, lane)[cluster_rank()] = *found;
  }
  row_barrier();
  *best = 0;
  *found = 0;
  for (int block = 0; block < cluster_blocks(); ++block) {
    *best = max(*best, s->best[block]);
    *found |= s->found[block];
  }
}

// Scores below the returned key are dropped. each(body) calls body(score) for a thread's scores.
template <typename Each>
__device__ unsigned int least_kept(Each each, int count, const mamba_choice_options& options,
                                   Thresholds* shared) {
  ThresholdFinder finder(shared);
  unsigned int least = 0;
  if (options.top_k > 0 && options.top_k < count) {
    const int dropped = count - options.top_k;
    least = finder.find<true>(
        each, [](float, unsigned int) { return Mass(1); }, count,
        [&](Mass) { return static_cast<double>(dropped); });
  }
  if (options.top_p < 1.) {
    const auto mass = [&](float score, unsigned int key) {
      return key >= least ? mass_of(score) : 0;
    };
    const double share = static_cast<double>(static_cast<float>(1. - options.top_p));
    least = max(least, finder.find<false>(each, mass, 0, [&](Mass whole) {
      return share * static_cast<double>(whole);
    }));
  }
  return least;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) choose(mamba_choose_params p) {
  __shared__ Shared s;
  cluster_arrive();
  const int64_t row = blockIdx.x / cluster_blocks();
  const bool is_first = cluster_rank() == 0 && threadIdx.x == 0;
  // Asked for before the logits, and needed after them.
  mamba_choice_options given = {};
  int64_t slot = 0;
  if (threadIdx.x == 0) {
    given = *p.options;
    if (p.turns) slot = p.turns[row];
  }
  const int count = static_cast<int>(p.vocab_size);
  const Row<T> logits(static_cast<const T*>(p.logits) + row * count, count);
  // What is there without options. Of equal numbers the first.
  unsigned int found = 0;
  float most = -INFINITY;
  const int first = max(logits.token(logits.begin), 0);
  int at = first;
  const auto compare = [&](int i, float x) {
    if (x > most) {
      most = x;
      at = i;
    }
  };
  logits.each_held([&](int i, float raw) {
    found |= (raw < INFINITY ? 0 : kOdd) | (raw > -INFINITY ? kSome : 0);
    compare(i, raw);
  });
  if (threadIdx.x == 0) {
    s.options = given;
    s.slot = static_cast<int>(slot);
  }
  __syncthreads();
  const mamba_choice_options& options = s.options;
  uint8_t* seen = p.seen + row * count;
  const bool penalises = options.repetition_penalty != 1.f;
  const auto conclude = [&](int64_t token) {
    if (penalises && token >= 0) seen[token] = 1;
    p.next[row] = max(token, int64_t(0));  // a token that the model can read
    if (p.turns) p.turns[row] = 1 - s.slot;
    p.chosen[s.slot * p.batch + row] = token;
  };

  if (options.choice == MAMBA_CHOOSE_NOTHING) {
    const int threads = cluster_blocks() * kThreads;
    float* scores = p.scores + row * count;
    for (int i = cluster_rank() * kThreads + threadIdx.x; i < count; i += threads) {
      scores[i] = to_float(logits.logits[i]);
    }
    if (is_first && p.turns) p.turns[row] = 1 - s.slot;
    cluster_wait();
    return;
  }
  const auto penalised = [&](int i, float x) {
    if (!penalises || !seen[i]) return x;
    return x < 0.f ? x * options.repetition_penalty : x / options.repetition_penalty;
  };

  double draw = 0;
  if (penalises) {
    most = -INFINITY;
    at = first;
    logits.each([&](int i, float raw) { compare(i, penalised(i, raw)); });
  }
  Mass best = 0;  // an index counts down
  if (logits.begin < logits.end) best = static_cast<Mass>(ordered(most)) << 32 | (0xffffffffu - at);
  if (options.choice == MAMBA_CHOOSE_DRAWN) {
    for (Histogram& histogram : s.thresholds.histograms) {
      histogram.low[threadIdx.x] = histogram.high[threadIdx.x] = 0;
    }
    // Of the host, far away: it is there by the time that it is needed.
    if (is_first) draw = p.draws[slot * p.batch + row];
  }
  row_best(&best, &found, &s);
  if (found != kSome) {
    if (is_first) conclude(-1);
    return;
  }
  if (options.choice == MAMBA_CHOOSE_BEST) {
    if (is_first) conclude(0xffffffffu - static_cast<unsigned int>(best));
    return;
  }

  const float top = disordered(best >> 32);
  const auto score_of = [&](int i, float raw) {
    return (penalised(i, raw) - top) / options.temperature;
  };
  const auto each_score = [&](auto body) {
    logits.each([&](int i, float raw) { body(score_of(i, raw)); });
  };
  const unsigned int least = least_kept(each_score, count, options, &s.thresholds);
  const auto kept_mass = [&](int i, float raw) {
    const float score = score_of(i, raw);
    return ordered(score) >= least ? mass_of(score) : 0;
  };
  // The first token whose mass, added to that of all before it, exceeds draw of the whole.
  Mass own = 0;
  logits.each([&](int i, float raw) { own += kept_mass(i, raw); });
  const Sums sums = sums_in_order(own, s.thresholds.warps);
  if (static_cast<int>(threadIdx.x) < cluster_blocks()) {
    in_block(s.masses, threadIdx.x)[cluster_rank()] = sums.total;
  }
  if (is_first) {
    for (int block = 0; block < cluster_blocks(); ++block) *in_block(&s.draw, block) = draw;
  }
  row_barrier();
  Mass before = sums.before, total = 0;
  for (int block = 0; block < cluster_blocks(); ++block) {
    if (block < cluster_rank()) before += s.masses[block];
    total += s.masses[block];
  }
  if (total == 0) {
    if (is_first) conclude(0);
    return;
  }
  // draw is below 1, but the product may round up to the total.
  const Mass target = min(static_cast<Mass>(s.draw * static_cast<double>(total)), total - 1);
  if (before <= target && target < before + own) {
    int token = -1;
    logits.each([&](int i, float raw) {
      before += kept_mass(i, raw);
      if (token < 0 && before > target) token = i;
    });
    conclude(token);
  }
}

// Blocks that share a row: as many as leave each a multiprocessor of its own. Clusters need sm_90.
int blocks_of_a_row(int64_t batch) {
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      major < 9) {
    return 1;
  }
  // Measured on an H100; 4 blocks for each of 32 rows take 10.8 us, and 2 take 7.7.
  return batch <= 8 ? 8 : batch <= 16 ? 4 : batch <= 64 ? 2 : 1;
}

template <typename T>
cudaError_t launch(const mamba_choose_params& p, cudaStream_t stream) {
  const int blocks = blocks_of_a_row(p.batch);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(p.batch * blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = blocks > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, choose<T>, p);
}

}  // namespace
}  // namespace choice
}  // namespace mamba

extern "C" mamba_status mamba_choose_cuda(const mamba_choose_params* params, void* stream) {
  if (!params) return mamba::fail(MAMBA_INVALID, "choose: params is null");
  const mamba_choose_params& p = *params;
  constexpr int64_t most = int64_t(1) << 23;  // a row of equal logits still fits a Mass
  if (p.batch < 1 || p.batch > INT32_MAX || p.vocab_size < 1 || p.vocab_size > most) {
    return mamba::fail(MAMBA_INVALID, "choose: batch %lld or vocab_size %lld is out of range",
                       static_cast<long long>(p.batch), static_cast<long long>(p.vocab_size));
  }
  if (!p.logits || !p.scores || !p.seen || !p.options || !p.draws || !p.next || !p.chosen) {
    return mamba::fail(MAMBA_INVALID, "choose: a tensor's pointer is null");
  }
  const cudaError_t launched = mamba::with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return mamba::choice::launch<T>(p, static_cast<cudaStream_t>(stream));
  });
  return mamba::status_of("choose", launched);
}
