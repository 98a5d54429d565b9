// What the choice of a kernel depends on, of the GPU that is current.
#pragma once

namespace mamba {

struct Gpu {
  int major;  // of the compute capability
  int multiprocessors;
  int shared_bytes;  // that one block may have
};

// Asked for once a device; zeros where there is no GPU, which the launch then reports.
const Gpu& current_gpu();

}  // namespace mamba
