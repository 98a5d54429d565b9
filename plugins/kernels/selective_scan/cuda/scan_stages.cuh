// How the roles of a block hand tiles of some steps to each other, in the scans that have roles
// (scan_pipe.cu, scan_mma.cu): in kStages stages of shared memory.
#pragma once

#include "selective_scan/cuda/scan.cuh"

namespace mamba {

constexpr int kStages = 3;  // of shared memory, a tile each

// Barriers of the hardware, one a stage: who hands it over arrives, who takes it waits.
enum Barrier {
  kFilled = 1,                  // producers to consumers
  kFree = kFilled + kStages,    // consumers to producers
  kSummed = kFree + kStages,    // consumers to epilogue
  kStored = kSummed + kStages,  // epilogue to consumers
};

__device__ __forceinline__ void arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void wait(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Those of a tile that exist, of the kSteps that all tiles but the last have.
template <int kSteps>
__device__ __forceinline__ int steps_of_tile(int64_t length, int tile_index) {
  const int64_t left = length - int64_t{kSteps} * tile_index;
  return left < kSteps ? static_cast<int>(left) : kSteps;
}

}  // namespace mamba
