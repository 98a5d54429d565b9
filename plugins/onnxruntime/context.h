// What a kernel sees of ONNX Runtime: a node's attributes, and the tensors, stream and memory of a
// run.
#pragma once

#include <vector>

#include "library.h"

namespace mamba_ort {

// The attribute's value, a flag as 0 or 1. Throws Refusal where it is missing, or is a flag of
// another value.
double read_attribute(const OrtFunctions& api, const OrtKernelInfo* info,
                      const Attribute& attribute);

// Whether an input is stored in the file.
bool is_constant(const OrtFunctions& api, const OrtKernelInfo* info, size_t index);

// Throws Refusal where the node was written for another version of its operator.
void check_version(const OrtFunctions& api, const OrtKernelInfo* info);

struct Input {
  std::vector<int64_t> shape;
  const void* data;
};

// Throws Refusal where the node leaves the input out; name is the contract's.
Input read_input(const OrtFunctions& api, const OrtKernelContext* context, size_t index,
                 const char* name);

// Null where the graph leaves the output out.
void* make_output(const OrtFunctions& api, OrtKernelContext* context, size_t index,
                  const std::vector<int64_t>& shape);

// Memory for one run of a node, on the device that it runs on; given back when this goes. On a GPU
// that is before the queued work is done, which the runtime's allocator of the run's stream allows
// for.
class Scratch {
 public:
  Scratch(const OrtFunctions& api, OrtKernelContext* context, Provider provider)
      : api_(api), context_(context), provider_(provider) {}
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Aligned to 256 bytes on a GPU. what says in the error's text what it is for; throws Failure
  // where there is no such memory.
  void* take(int64_t bytes, const char* what);

 private:
  void* take_device(size_t bytes);

  const OrtFunctions& api_;
  OrtKernelContext* context_;
  Provider provider_;
  std::vector<std::unique_ptr<char[]>> host_;  // of new (std::nothrow)
  OrtMemoryInfo* device_info_ = nullptr;
  OrtAllocator* device_allocator_ = nullptr;
  std::vector<void*> device_;
};

// The run's stream.
void* stream_of(const OrtFunctions& api, const OrtKernelContext* context);

}  // namespace mamba_ort
