// What the files of the custom-op library share: the operator as ONNX Runtime sees it, and error
// handling.
//
// Errors are exceptions inside and an OrtStatus outside; nothing is thrown past the boundary.
#pragma once

#include <string>
#include <vector>

#include "mamba_kernels.h"
#include "operators.h"
#include "ort_abi.h"

namespace mamba_ort {

// One operator for one dtype: ONNX Runtime picks among those of a name by the types of a node's
// inputs.
struct CustomOp : OrtCustomOp {
  CustomOp(OrtFunctions api, const Operator& description, mamba_dtype dtype);

  OrtFunctions api;
  const Operator& description;
  mamba_dtype dtype;
};

// The members of CustomOp that make and run kernels (kernel.cpp).
OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) noexcept;
OrtStatus* compute(void* kernel, OrtKernelContext* context) noexcept;
void destroy_kernel(void* kernel) noexcept;

// An error that ONNX Runtime itself reported: passed on as it is.
struct RuntimeError {
  OrtStatus* status;
};

inline void check(OrtStatus* status) {
  if (status) throw RuntimeError{status};
}

// Runs body and turns what it throws into a status; our own texts start with the operator's name.
template <typename Body>
OrtStatus* guarded(const CustomOp& op, Body body) noexcept {
  try {
    try {
      body();
      return nullptr;
    } catch (const RuntimeError& error) {
      return error.status;
    } catch (const InputError& error) {
      const std::string text = std::string("mamba_export ") + op.description.name + ": ";
      return op.api.CreateStatus(kOrtInvalidArgument, (text + error.what()).c_str());
    }
  } catch (
      ...) {  // nothing else is thrown but for want of memory, also while the text is put together
    return op.api.CreateStatus(kOrtFail, "mamba_export: out of memory");
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
