// What the files of the custom-op library share: the operators as ONNX Runtime sees them, and error
// handling.
//
// Errors are exceptions inside and an OrtStatus outside; nothing is thrown past the boundary.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "contract.h"
#include "mamba_kernels.h"
#include "ort_abi.h"

namespace mamba_ort {

using namespace mamba_contract;

// Where a kernel computes: ONNX Runtime's execution provider.
enum Provider { kCpu, kCuda };

// One operator for one choice of dtypes and one provider: ONNX Runtime picks among those of a name
// by the provider that a node was given to and by the types of its inputs.
struct CustomOp : OrtCustomOp {
  CustomOp(OrtFunctions api, const Operator& description, Dtypes dtypes, int bits,
           Provider provider);

  OrtFunctions api;
  const Operator& description;
  Dtypes dtypes;
  int bits;  // of the codes of packed matrices, 0 without
  Provider provider;
};

// The members of CustomOp that make and run kernels (kernel.cpp).
OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) noexcept;
OrtStatus* compute(void* kernel, OrtKernelContext* context) noexcept;
void destroy_kernel(void* kernel) noexcept;

// What is registered; ONNX Runtime keeps pointers to them.
using CustomOps = std::vector<std::unique_ptr<const CustomOp>>;

// An error that ONNX Runtime itself reported: passed on as it is.
struct RuntimeError {
  OrtStatus* status;
};

using mamba_contract::check;  // of a kernel's status

inline void check(OrtStatus* status) {
  if (status) throw RuntimeError{status};
}

// ONNX Runtime's code for a status of ours. Not its EP_FAIL for CUDA: Python's sessions answer that
// by running again on the CPU, in silence.
inline OrtErrorCode code_of(mamba_status status) {
  if (status == MAMBA_INVALID) return kOrtInvalidArgument;
  return status == MAMBA_INTERNAL ? kOrtRuntimeException : kOrtFail;
}

// Runs body and turns what it throws into a status; our own texts start with the operator's name.
template <typename Body>
OrtStatus* guarded(const OrtFunctions& api, const char* name, Body body) noexcept {
  try {
    try {
      body();
      return nullptr;
    } catch (const RuntimeError& error) {
      return error.status;
    } catch (const std::exception& error) {
      const std::string text = std::string("mamba_export ") + name + ": " + text_of(error);
      return api.CreateStatus(code_of(status_of(error)), text.c_str());
    }
  } catch (const std::bad_alloc&) {  // while the text was put together
    return api.CreateStatus(kOrtFail, "mamba_export: failed to allocate memory");
  } catch (...) {
    return api.CreateStatus(kOrtRuntimeException, "mamba_export: an unknown error");
  }
}

inline std::vector<int64_t> shape_of(const OrtFunctions& api,
                                     const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  check(api.GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(api.GetDimensions(info, shape.data(), rank));
  return shape;
}

}  // namespace mamba_ort
