// The score that top-k or top-p keeps last, over a row that the blocks of a cluster share.
//
// Scores are put into bins by size, and their weights summed there; the bin in which the threshold
// lies is put into bins again, down to one number: two to four readings of a row, with ties and
// with no sort. Weights are integers, so that their sums are the same in any order.
#pragma once

#include "decode/cuda/row.cuh"

namespace mamba {
namespace choice {

constexpr int kBinBits = 10;
constexpr int kBins = 1 << kBinBits;
static_assert(kBins == kThreads, "a thread takes a bin");
constexpr float kOne = 1099511627776.f;  // 2^40, the mass of a weight of 1: 2^23 of them fit

// Weight of a score, of which the largest is 0. Below -28.5 it is 0.
__device__ inline Mass mass_of(float score) { return static_cast<Mass>(expf(score) * kOne + 0.5f); }

// Floats in order as unsigned integers; 0 and -0 are equal.
__device__ inline unsigned int ordered(float x) {
  const unsigned int bits = __float_as_uint(x + 0.f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float disordered(unsigned int key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// 64-bit sums in halves, whose atomic additions the hardware has.
struct Histogram {
  unsigned int low[kBins], high[kBins];

  __device__ void add(int bin, Mass weight) {
    if (weight == 0) return;
    const auto part = static_cast<unsigned int>(weight);
    const unsigned int before = atomicAdd(low + bin, part);
    const unsigned int carried =
        static_cast<unsigned int>(weight >> 32) + (before + part < before ? 1 : 0);
    if (carried) atomicAdd(high + bin, carried);
  }
};

// The first bins are linear in the score, a power of two each nat, so that a bin's bounds are
// exact. What lies below the last has no mass, and is never chosen, kept or not.
constexpr float kBinsPerNat = kBins / 32.f;

struct Thresholds {
  Histogram histograms[2];  // they take turns
  Mass warps[kWarps];
  unsigned int bin;  // in which the threshold lies; kBins for none
  Mass above;        // weight of the bins above it
  Mass inside;       // and of it
};

// Finds thresholds of one row after the other's weights. Both histograms are 0 at the start, for
// all blocks of the cluster.
class ThresholdFinder {
 public:
  __device__ explicit ThresholdFinder(Thresholds* shared) : shared_(shared) {}

  // A key as good as the largest one such that the scores of lesser keys weigh allowed(total) at
  // most: no score lies between the two. 0 where that key's scores have no mass. Every thread of
  // the cluster must call it, and gets it.
  //
  // each(body) calls body(score) for every score of a thread; weight(score, key) is an integer;
  // total is their sum, or 0 to have it taken from the scores that have a mass.
  // Small says that all weights together are below 2^32.
  template <bool Small, typename Each, typename Weight, typename Allowed>
  __device__ unsigned int find(Each each, Weight weight, Mass total, Allowed allowed) {
    each([&](float score) {
      const float bin = fminf(-score * kBinsPerNat, kBins);  // not a number: the last
      if (bin < kBins) histogram().add(static_cast<int>(bin), weight(score, ordered(score)));
    });
    Mass above = 0;
    unsigned int bin = narrow<Small>(&above, &total, allowed);
    if (bin >= kBins) return 0;
    unsigned int first = ordered(-static_cast<float>(bin + 1) / kBinsPerNat) + 1;
    unsigned int last = ordered(-static_cast<float>(bin) / kBinsPerNat);
    while (first < last && !is_single(weight(disordered(first), first))) {
      const int shift = max(32 - __clz(last - first) - kBinBits, 0);
      each([&](float score) {
        const unsigned int key = ordered(score);
        if (key >= first && key <= last) histogram().add((last - key) >> shift, weight(score, key));
      });
      bin = narrow<Small>(&above, &total, allowed);
      last -= bin << shift;
      const unsigned int width = (1u << shift) - 1;
      if (last - first > width) first = last - width;
    }
    return first;
  }

 private:
  __device__ Histogram& histogram() { return shared_->histograms[turn_]; }

  // Whether the bin holds one score; least is the weight of its smallest, which others are close
  // to.
  __device__ bool is_single(Mass least) const { return shared_->inside < least + (least + 1) / 2; }

  // The bin that holds the threshold, from the histograms of all blocks; kBins where none does.
  template <bool Small, typename Allowed>
  __device__ unsigned int narrow(Mass* above, Mass* total, Allowed allowed) {
    row_barrier();
    // All have read the last bin and the other histogram, else they were not here.
    if (threadIdx.x == 0) shared_->bin = kBins;
    shared_->histograms[1 - turn_].low[threadIdx.x] = 0;
    shared_->histograms[1 - turn_].high[threadIdx.x] = 0;
    Mass own = 0;
#pragma unroll 4
    for (int block = 0; block < cluster_blocks(); ++block) {
      const Histogram* theirs = in_block(&histogram(), block);
      own += theirs->low[threadIdx.x];
      if (!Small) own += static_cast<Mass>(theirs->high[threadIdx.x]) << 32;
    }
    const Sums sums = sums_in_order(own, shared_->warps);
    if (*total == 0) *total = sums.total;
    const double limit = allowed(*total);
    const Mass before = *above + sums.before;
    const auto holds = [&](Mass upto) { return static_cast<double>(*total - upto) <= limit; };
    if (holds(before + own) && (threadIdx.x == 0 || !holds(before))) {
      shared_->bin = threadIdx.x;
      shared_->above = before;
      shared_->inside = own;
    }
    __syncthreads();
    turn_ = 1 - turn_;
    *above = shared_->above;
    return shared_->bin;
  }

  Thresholds* shared_;
  int turn_ = 0;
};

}  // namespace choice
}  // namespace mamba
