// The kernels of each row of the table. Adapters give every kernel the same signature: a struct as
// const void*, and a workspace where a kernel needs none.
#include "spec.h"
#include "table.h"

namespace mamba_contract {
namespace {

template <typename Struct>
const Struct* as(const void* params) {
  return static_cast<const Struct*>(params);
}

template <auto kernel>
struct Adapter;

template <typename Struct,
          mamba_status (*kernel)(const Struct*, mamba_parallel_for, void* scheduler)>
struct Adapter<kernel> {
  static mamba_status call(const void* params, mamba_parallel_for parallel_for, void* scheduler) {
    return kernel(as<Struct>(params), parallel_for, scheduler);
  }
};

template <typename Struct, size_t (*workspace)(const Struct*)>
struct Adapter<workspace> {
  static size_t call(const void* params) { return workspace(as<Struct>(params)); }
};

template <typename Struct, mamba_status (*kernel)(const Struct*, void* workspace, void* stream)>
struct Adapter<kernel> {
  static mamba_status call(const void* params, void* workspace, void* stream) {
    return kernel(as<Struct>(params), workspace, stream);
  }
};

template <typename Struct, mamba_status (*kernel)(const Struct*, void* stream)>
struct Adapter<kernel> {
  static mamba_status call(const void* params, void*, void* stream) {
    return kernel(as<Struct>(params), stream);
  }
};

// Of an operator that needs no products where it runs as a step.
template <typename Struct, int (*is_step)(const Struct*)>
struct Adapter<is_step> {
  static bool call(const void* params) { return !is_step(as<Struct>(params)); }
};

template <typename Struct, mamba_status (*kernel)(const Struct*, mamba_multiply, void* context,
                                                  void* workspace, void* stream)>
struct Adapter<kernel> {
  static mamba_status call(const void* params, mamba_multiply multiply, void* context,
                           void* workspace, void* stream) {
    return kernel(as<Struct>(params), multiply, context, workspace, stream);
  }
};

// Of a packed layer: one call serves both.
template <auto kernel>
struct WithoutProducts;
template <typename Struct, mamba_status (*kernel)(const Struct*, mamba_multiply, void* context,
                                                  void* workspace, void* stream)>
struct WithoutProducts<kernel> {
  static mamba_status call(const void* params, void* workspace, void* stream) {
    return kernel(as<Struct>(params), nullptr, nullptr, workspace, stream);
  }
};

template <auto function>
constexpr auto kAdapted = &Adapter<function>::call;

size_t no_workspace(const void*) { return 0; }

}  // namespace

const Kernels kSelectiveScanKernels = {kAdapted<mamba_selective_scan_cpu>,
                                       kAdapted<mamba_selective_scan_cuda_workspace>,
                                       kAdapted<mamba_selective_scan_cuda>, nullptr, nullptr};

const Kernels kCausalConv1dKernels = {kAdapted<mamba_causal_conv1d_cpu>, no_workspace,
                                      kAdapted<mamba_causal_conv1d_cuda>, nullptr, nullptr};

const Kernels kStateSpaceDualKernels = {kAdapted<mamba_state_space_dual_cpu>,
                                        kAdapted<mamba_state_space_dual_cuda_workspace>,
                                        kAdapted<mamba_state_space_dual_cuda>, nullptr, nullptr};

const Kernels kGatedRmsNormKernels = {kAdapted<mamba_gated_rms_norm_cpu>, no_workspace,
                                      kAdapted<mamba_gated_rms_norm_cuda>, nullptr, nullptr};

// Few rows run without products; the larger of the two workspaces serves both.
const Kernels kMambaLayerKernels = {kAdapted<mamba_layer_cpu>, kAdapted<mamba_layer_cuda_workspace>,
                                    kAdapted<mamba_layer_step_cuda>,
                                    kAdapted<mamba_layer_is_step_cuda>, kAdapted<mamba_layer_cuda>};

const Kernels kMamba2LayerKernels = {
    kAdapted<mamba2_layer_cpu>, kAdapted<mamba2_layer_cuda_workspace>,
    kAdapted<mamba2_layer_step_cuda>, kAdapted<mamba2_layer_is_step_cuda>,
    kAdapted<mamba2_layer_cuda>};

const Kernels kMambaLayerPackedKernels = {nullptr, kAdapted<mamba_layer_packed_cuda_workspace>,
                                          &WithoutProducts<mamba_layer_packed_cuda>::call,
                                          kAdapted<mamba_layer_packed_is_step_cuda>,
                                          kAdapted<mamba_layer_packed_cuda>};

const Kernels kMamba2LayerPackedKernels = {nullptr, kAdapted<mamba2_layer_packed_cuda_workspace>,
                                           &WithoutProducts<mamba2_layer_packed_cuda>::call,
                                           kAdapted<mamba2_layer_packed_is_step_cuda>,
                                           kAdapted<mamba2_layer_packed_cuda>};

// On a GPU the runtimes' own products are quick where the weights are no codes.
const Kernels kLinearKernels = {kAdapted<mamba_linear_cpu>, no_workspace, nullptr, nullptr,
                                nullptr};

const Kernels kLinearPackedKernels = {nullptr, kAdapted<mamba_linear_packed_cuda_workspace>,
                                      &WithoutProducts<mamba_linear_packed_cuda>::call,
                                      kAdapted<mamba_linear_packed_is_step_cuda>,
                                      kAdapted<mamba_linear_packed_cuda>};

}  // namespace mamba_contract
