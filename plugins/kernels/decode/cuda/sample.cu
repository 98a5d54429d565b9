// The choice of the next token from logits, by mamba_export/generation/sampling.py's rules:
// repetition penalty, temperature, top-k, top-p. One block a sequence.
//
// Thresholds are found a bit at a time: floats whose bits are put in order compare as integers, so
// 32 counts over the row find the k-th largest number, or the one that a mass lies below, with ties
// and with no sort. Masses are integers, so that their sums are the same in any order.
#include <cuda_runtime.h>

#include <type_traits>

#include "common/cuda/numeric.cuh"
#include "common/cuda/status.h"
#include "mamba_decode.h"

namespace mamba {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
using Mass = unsigned long long;
constexpr float kOne = 1099511627776.f;  // 2^40, the mass of a weight of 1: 2^23 of them fit

// Floats in order as unsigned integers; 0 and -0 are equal.
__device__ unsigned int ordered(float x) {
  const unsigned int bits = __float_as_uint(x + 0.f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ float disordered(unsigned int key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Of all threads of the block, for all of them. shared holds kWarps + 1 numbers.
template <typename Combine>
__device__ Mass reduce(Mass value, Mass* shared, Combine combine) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(~0u, value, offset));
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    value = shared[threadIdx.x];
    for (int offset = 16; offset > 0; offset /= 2) {
      value = combine(value, __shfl_xor_sync(~0u, value, offset));
    }
    if (threadIdx.x == 0) shared[kWarps] = value;
  }
  __syncthreads();
  value = shared[kWarps];
  __syncthreads();
  return value;
}

__device__ Mass sum(Mass value, Mass* shared) {
  return reduce(value, shared, [](Mass a, Mass b) { return a + b; });
}

__device__ Mass largest(Mass value, Mass* shared) {
  return reduce(value, shared, [](Mass a, Mass b) { return a > b ? a : b; });
}

// Weight of a score, of which the largest is 0.
__device__ Mass mass_of(float score) { return static_cast<Mass>(expf(score) * kOne + 0.5f); }

// The largest key for which holds(key) is true; it is true of 0, and of every key below a true one.
template <typename Holds>
__device__ unsigned int largest_key(Holds holds) {
  unsigned int key = 0;
  for (unsigned int bit = 0x80000000u; bit; bit >>= 1) {
    if (holds(key | bit)) key |= bit;
  }
  return key;
}

// Scores below the returned key are dropped.
__device__ unsigned int threshold(const float* scores, int count, int top_k, double top_p,
                                  Mass* shared) {
  unsigned int least = 0;
  if (top_k > 0 && top_k < count) {
    least = largest_key([&](unsigned int key) {
      Mass kept = 0;
      for (int i = threadIdx.x; i < count; i += kThreads) kept += ordered(scores[i]) >= key;
      return sum(kept, shared) >= static_cast<Mass>(top_k);
    });
  }
  if (top_p < 1.) {
    const auto mass_below = [&](unsigned int key) {
      Mass mass = 0;
      for (int i = threadIdx.x; i < count; i += kThreads) {
        const unsigned int own = ordered(scores[i]);
        if (own >= least && own < key) mass += mass_of(scores[i]);
      }
      return sum(mass, shared);
    };
    const double limit = static_cast<double>(static_cast<float>(1. - top_p)) *
                         static_cast<double>(mass_below(ordered(0.f) + 1));
    const unsigned int kept = largest_key([&](unsigned int key) {
      return key <= least || static_cast<double>(mass_below(key)) <= limit;
    });
    least = min(max(least, kept), ordered(0.f));  // the most likely token always stays
  }
  return least;
}

// The first token whose mass, added to that of all before it, exceeds draw of the whole.
__device__ int drawn(const float* scores, int count, unsigned int least, double draw,
                     Mass* shared) {
  const auto kept_mass = [&](int i) {
    return ordered(scores[i]) >= least ? mass_of(scores[i]) : 0;
  };
  // A run of tokens a thread.
  const int width = (count + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * width, count);
  const int end = min(begin + width, count);
  Mass own = 0;
  for (int i = begin; i < end; ++i) own += kept_mass(i);

  Mass upto = own;  // of this thread and those before it
  for (int offset = 1; offset < 32; offset *= 2) {
    const Mass left = __shfl_up_sync(~0u, upto, offset);
    if (threadIdx.x % 32 >= offset) upto += left;
  }
  __shared__ int found;
  if (threadIdx.x == 0) found = 0;
  if (threadIdx.x % 32 == 31) shared[threadIdx.x / 32] = upto;
  __syncthreads();
  Mass total = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < static_cast<int>(threadIdx.x) / 32) upto += shared[warp];
    total += shared[warp];
  }
  __syncthreads();

  // draw is below 1, but the product may round up to the total.
  const Mass target = min(static_cast<Mass>(draw * static_cast<double>(total)), total - 1);
  if (upto - own <= target && target < upto) {
    int i = begin;
    for (Mass mass = upto - own + kept_mass(i); mass <= target; mass += kept_mass(i)) ++i;
    found = i;
  }
  __syncthreads();
  return found;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) choose(mamba_choose_params p) {
  __shared__ Mass shared[kWarps + 1];
  __shared__ mamba_choice_options options;  // one trip to host memory
  if (threadIdx.x == 0) options = *p.options;
  __syncthreads();

  const int64_t row = blockIdx.x;
  const int count = static_cast<int>(p.vocab_size);
  const T* logits = static_cast<const T*>(p.logits) + row * count;
  float* scores = p.scores + row * count;
  if (options.choice == MAMBA_CHOOSE_NOTHING) {
    for (int i = threadIdx.x; i < count; i += kThreads) scores[i] = to_float(logits[i]);
    return;
  }
  uint8_t* seen = p.seen + row * count;
  const bool penalises = options.repetition_penalty != 1.f;
  const auto logit = [&](int i) {
    const float x = to_float(logits[i]);
    if (!penalises || !seen[i]) return x;
    return x < 0.f ? x * options.repetition_penalty : x / options.repetition_penalty;
  };

  bool has_nan = false;
  Mass best = 0;  // of equal numbers the first: its index counts down
  Mass best_raw = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const float raw = to_float(logits[i]);
    has_nan |= isnan(raw);
    best_raw = max(best_raw, static_cast<Mass>(ordered(raw)));
    best = max(best, static_cast<Mass>(ordered(logit(i))) << 32 | (0xffffffffu - i));
  }
  has_nan = __syncthreads_or(has_nan);
  best = largest(best, shared);
  best_raw = largest(best_raw, shared);
  if (has_nan || !isfinite(disordered(best_raw))) {
    if (threadIdx.x == 0) {
      p.chosen[row] = -1;
      p.next[row] = 0;  // a token that the model can read
    }
    return;
  }
  unsigned int token = 0xffffffffu - static_cast<unsigned int>(best);
  if (options.choice == MAMBA_CHOOSE_DRAWN) {
    const float top = disordered(best >> 32);
    for (int i = threadIdx.x; i < count; i += kThreads) {
      scores[i] = (logit(i) - top) / options.temperature;
    }
    __syncthreads();
    const unsigned int least = threshold(scores, count, options.top_k, options.top_p, shared);
    token = drawn(scores, count, least, p.draws[row], shared);
  }
  if (threadIdx.x == 0) {
    if (penalises) seen[token] = 1;
    p.next[row] = token;
    p.chosen[row] = token;
  }
}

}  // namespace
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
  mamba::with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    mamba::choose<T>
        <<<static_cast<unsigned>(p.batch), mamba::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            p);
  });
  return mamba::status_of("choose", cudaGetLastError());
}
