// What the forms of a layer share on every device: a workspace in parts, and slices of its rows.
#pragma once

#include "common/checks.h"
#include "mamba_kernels.h"

namespace mamba {

inline int64_t element_bytes(mamba_dtype dtype) { return dtype == MAMBA_FP32 ? 4 : 2; }

// Hands out the parts of a workspace; with a null start it only adds them up.
class Parts {
 public:
  explicit Parts(void* start) : start_(static_cast<char*>(start)) {}
  void* take(int64_t bytes) {
    void* part = start_ ? start_ + used_ : nullptr;
    used_ += (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    return part;
  }
  size_t used() const { return static_cast<size_t>(used_); }

 private:
  char* start_;
  int64_t used_ = 0;
};

// Channels from `first` on of rows of `stride` numbers, `length` of them a sequence.
inline mamba_sequence slice(const void* data, int64_t first, int64_t stride, int64_t length,
                            mamba_dtype dtype) {
  const char* start = static_cast<const char*>(data) + first * element_bytes(dtype);
  return {start, length * stride, stride};
}

}  // namespace mamba
