// The CUDA entry points of a library that was built without CUDA; plugins/cuda.cmake knows why.
#include "common/errors.h"

namespace {

mamba_status absent() {
  return mamba::fail(
      MAMBA_NO_CUDA,
      "the kernels were built without CUDA (%s): with the CUDA toolkit's nvcc on PATH, "
      "install mamba_export from its sources again",
      MAMBA_CUDA_ABSENCE);
}

}  // namespace

extern "C" {

const char* mamba_cuda_architectures(void) { return ""; }
mamba_status mamba_cuda_check_device(int) { return absent(); }
size_t mamba_selective_scan_cuda_workspace(const mamba_selective_scan_params*) { return 0; }
mamba_status mamba_selective_scan_cuda(const mamba_selective_scan_params*, void*, void*) {
  return absent();
}
mamba_status mamba_causal_conv1d_cuda(const mamba_causal_conv1d_params*, void*) { return absent(); }
size_t mamba_state_space_dual_cuda_workspace(const mamba_state_space_dual_params*) { return 0; }
mamba_status mamba_state_space_dual_cuda(const mamba_state_space_dual_params*, void*, void*) {
  return absent();
}
const char* mamba_state_space_dual_cuda_form(const mamba_state_space_dual_params*, int) {
  return "";
}
mamba_status mamba_gated_rms_norm_cuda(const mamba_gated_rms_norm_params*, void*) {
  return absent();
}
int mamba_layer_is_step_cuda(const mamba_layer_params*) { return 0; }
size_t mamba_layer_step_cuda_workspace(const mamba_layer_params*) { return 0; }
size_t mamba_layer_cuda_workspace(const mamba_layer_params*) { return 0; }
mamba_status mamba_layer_step_cuda(const mamba_layer_params*, void*, void*) { return absent(); }
mamba_status mamba_layer_cuda(const mamba_layer_params*, mamba_multiply, void*, void*, void*) {
  return absent();
}
const char* mamba2_layer_cuda_form(const mamba2_layer_params*, int) { return ""; }
int mamba2_layer_is_step_cuda(const mamba2_layer_params*) { return 0; }
size_t mamba2_layer_step_cuda_workspace(const mamba2_layer_params*) { return 0; }
size_t mamba2_layer_cuda_workspace(const mamba2_layer_params*) { return 0; }
mamba_status mamba2_layer_step_cuda(const mamba2_layer_params*, void*, void*) { return absent(); }
mamba_status mamba2_layer_cuda(const mamba2_layer_params*, mamba_multiply, void*, void*, void*) {
  return absent();
}
int mamba_layer_packed_is_step_cuda(const mamba_layer_packed_params*) { return 0; }
size_t mamba_layer_packed_cuda_workspace(const mamba_layer_packed_params*) { return 0; }
mamba_status mamba_layer_packed_cuda(const mamba_layer_packed_params*, mamba_multiply, void*, void*,
                                     void*) {
  return absent();
}
int mamba2_layer_packed_is_step_cuda(const mamba2_layer_packed_params*) { return 0; }
size_t mamba2_layer_packed_cuda_workspace(const mamba2_layer_packed_params*) { return 0; }
mamba_status mamba2_layer_packed_cuda(const mamba2_layer_packed_params*, mamba_multiply, void*,
                                      void*, void*) {
  return absent();
}
int mamba_linear_packed_is_step_cuda(const mamba_linear_packed_params*) { return 0; }
size_t mamba_linear_packed_cuda_workspace(const mamba_linear_packed_params*) { return 0; }
mamba_status mamba_linear_packed_cuda(const mamba_linear_packed_params*, mamba_multiply, void*,
                                      void*, void*) {
  return absent();
}
}  // extern "C"
