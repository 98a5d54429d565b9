// What the choice of a kernel depends on, of the GPU that is current.
#pragma once

#include "common/cuda/tuning.cuh"

namespace mamba {

struct Gpu {
  int major, minor;  // of the compute capability
  int multiprocessors;
  int shared_bytes;  // that one block may have

  // One of another machine, which a question is about, has a compute capability alone.
  bool is_present() const { return multiprocessors > 0; }
};

// Asked for once a device; zeros where there is no GPU, which the launch then reports.
const Gpu& current_gpu();

inline const Tuning& current_tuning() {
  const Gpu& gpu = current_gpu();
  return tuning_of(gpu.major * 10 + gpu.minor);
}

}  // namespace mamba
