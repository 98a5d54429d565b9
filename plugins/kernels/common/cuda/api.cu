// The C interface of the CUDA kernels: checks sizes and the device, picks a kernel by shape.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

#include "common/checks.h"
#include "common/cuda/kernels.cuh"
#include "common/cuda/status.h"
#include "selective_scan/cuda/scan_parts.h"

namespace mamba {
namespace {

// Machine code of one architecture runs on devices of its major version and the same or a later
// minor one; PTX on everything later.
bool is_covered(int major, int minor) {
  const char* at = MAMBA_CUDA_ARCHITECTURES;
  int architecture = 0, read = 0;
  while (std::sscanf(at, "%d%n", &architecture, &read) == 1) {
    at += read;
    const bool has_ptx = std::strncmp(at, "+ptx", 4) == 0;
    if (has_ptx) at += 4;
    const int wanted = major * 10 + minor;
    if (architecture / 10 == major && architecture <= wanted) return true;
    if (has_ptx && architecture <= wanted) return true;
  }
  return false;
}

}  // namespace
}  // namespace mamba

extern "C" {

const char* mamba_cuda_architectures(void) { return MAMBA_CUDA_ARCHITECTURES; }

mamba_status mamba_cuda_check_device(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) {
    int driver = 0;
    cudaDriverGetVersion(&driver);  // 0 where there is none, which CUDA calls an insufficient one
    return mamba::fail(MAMBA_NO_CUDA, "no NVIDIA GPU can be used: %s",
                       driver ? cudaGetErrorString(error) : "there is no NVIDIA driver");
  }
  if (error != cudaSuccess) return mamba::status_of("device", error);
  if (device < 0 || device >= count) {
    return mamba::fail(MAMBA_NO_CUDA, "there is no GPU %d: this machine has %d", device, count);
  }
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (!mamba::is_covered(major, minor)) {
    return mamba::fail(
        MAMBA_NO_CUDA,
        "GPU %d is sm_%d%d, and the kernels were built for sm_ %s: build mamba_export "
        "from its sources on this machine",
        device, major, minor, MAMBA_CUDA_ARCHITECTURES);
  }
  return MAMBA_OK;
}

size_t mamba_selective_scan_cuda_workspace(const mamba_selective_scan_params* params) {
  return mamba::check_sizes(params) == MAMBA_OK ? mamba::scan_workspace(*params) : 0;
}

mamba_status mamba_selective_scan_cuda(const mamba_selective_scan_params* params, void* workspace,
                                       void* stream) {
  if (mamba_status bad = mamba::check(params)) return bad;
  if (!workspace && mamba::scan_workspace(*params) > 0) {
    return mamba::fail(MAMBA_INVALID, "selective_scan: workspace is null");
  }
  return mamba::status_of(
      "selective_scan", mamba::launch_scan(*params, workspace, static_cast<cudaStream_t>(stream)));
}

mamba_status mamba_causal_conv1d_cuda(const mamba_causal_conv1d_params* params, void* stream) {
  if (mamba_status bad = mamba::check(params)) return bad;
  return mamba::status_of("causal_conv1d",
                          mamba::launch_conv(*params, static_cast<cudaStream_t>(stream)));
}

size_t mamba_state_space_dual_cuda_workspace(const mamba_state_space_dual_params* params) {
  return mamba::check_sizes(params) == MAMBA_OK ? mamba::ssd_workspace(*params) : 0;
}

mamba_status mamba_state_space_dual_cuda(const mamba_state_space_dual_params* params,
                                         void* workspace, void* stream) {
  if (mamba_status bad = mamba::check(params)) return bad;
  if (!workspace && mamba::ssd_workspace(*params) > 0) {
    return mamba::fail(MAMBA_INVALID, "state_space_dual: workspace is null");
  }
  return mamba::status_of("state_space_dual",
                          mamba::launch_ssd(*params, workspace, static_cast<cudaStream_t>(stream)));
}

const char* mamba_state_space_dual_cuda_form(const mamba_state_space_dual_params* params,
                                             int architecture) {
  return mamba::check_sizes(params) ? "" : mamba::ssd_form_name(*params, architecture);
}

mamba_status mamba_gated_rms_norm_cuda(const mamba_gated_rms_norm_params* params, void* stream) {
  if (mamba_status bad = mamba::check(params)) return bad;
  return mamba::status_of("gated_rms_norm",
                          mamba::launch_gated_norm(*params, static_cast<cudaStream_t>(stream)));
}

}  // extern "C"
