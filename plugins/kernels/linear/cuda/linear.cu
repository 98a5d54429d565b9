// A product with a matrix of codes: few rows read the codes as they are; for many the weights are
// widened, and the caller multiplies.
#include "common/checks.h"
#include "common/sizes.h"
#include "layer/cuda/many_rows.h"
#include "linear/cuda/linear_step.cuh"

namespace mamba {
namespace {

constexpr char kName[] = "linear";

int64_t rows_of(const mamba_linear_params& p) { return p.batch * p.length; }

template <typename Body>
auto with_type_of_codes(mamba_dtype dtype, Body body) {
  if (dtype == MAMBA_FP32) return body(static_cast<float*>(nullptr));
  return body(static_cast<__half*>(nullptr));
}

LinearStep describe(const mamba_linear_packed_params& packed) {
  const mamba_linear_params& p = packed.layer;
  // Launches may depend on each other since sm_90.
  const bool overlaps = current_gpu().major >= 9 && p.constant_weights;
  return {p.x,
          p.weight,
          p.y,
          static_cast<int>(rows_of(p)),
          static_cast<int>(p.in_features),
          static_cast<int>(p.out_features),
          packed.weight,
          overlaps};
}

bool is_step(const mamba_linear_packed_params& packed) {
  const mamba_linear_params& p = packed.layer;
  if (rows_of(p) > kMaxStepRows || p.dtype == MAMBA_BF16) return false;
  if (!step_takes(packed.weight, p.weight, rows_of(p), p.in_features, p.out_features, p.dtype) ||
      !is_aligned<16>(p.x, p.in_features, static_cast<size_t>(element_bytes(p.dtype)))) {
    return false;
  }
  const size_t bytes = with_type_of_codes(p.dtype, [&](auto* type) {
    return linear_step_shared_bytes<std::decay_t<decltype(*type)>>(describe(packed));
  });
  return bytes <= static_cast<size_t>(current_gpu().shared_bytes);
}

mamba_status check_packed(const mamba_linear_packed_params* params) {
  if (!params) return fail(MAMBA_INVALID, "%s: params is null", kName);
  if (mamba_status bad = check(&params->layer)) return bad;
  if (params->layer.dtype == MAMBA_BF16) {
    return fail(MAMBA_INVALID, "%s: codes have scales of fp32 or fp16, not bf16", kName);
  }
  if (params->weight.bits == 0) return fail(MAMBA_INVALID, "%s: weight has no codes", kName);
  return check_codes(kName, "weight", params->weight, params->layer.in_features);
}

int64_t widened_bytes(const mamba_linear_params& p) {
  return product(p.in_features, p.out_features, element_bytes(p.dtype));
}

}  // namespace
}  // namespace mamba

extern "C" {

int mamba_linear_packed_is_step_cuda(const mamba_linear_packed_params* params) {
  return mamba::check_packed(params) == MAMBA_OK && mamba::is_step(*params);
}

size_t mamba_linear_packed_cuda_workspace(const mamba_linear_packed_params* params) {
  using namespace mamba;
  if (!params || check_sizes(&params->layer)) return 0;
  return is_step(*params) ? 0 : static_cast<size_t>(widened_bytes(params->layer));
}

mamba_status mamba_linear_packed_cuda(const mamba_linear_packed_params* params,
                                      mamba_multiply multiply, void* context, void* workspace,
                                      void* stream) {
  using namespace mamba;
  if (mamba_status bad = check_packed(params)) return bad;
  const mamba_linear_params& p = params->layer;
  const auto queue = static_cast<cudaStream_t>(stream);
  if (is_step(*params)) {
    const cudaError_t error = with_type_of_codes(p.dtype, [&](auto* type) {
      return launch_linear_step<std::decay_t<decltype(*type)>>(describe(*params), queue);
    });
    return status_of(kName, error);
  }
  if (!multiply) return fail(MAMBA_INVALID, "%s: multiply is null", kName);
  if (!workspace) return fail(MAMBA_INVALID, "%s: workspace is null", kName);
  const Widening widening = {params->weight, p.weight, p.in_features,
                             p.out_features, p.dtype,  workspace};
  if (mamba_status bad = status_of(kName, launch_widen(widening, queue))) return bad;
  // Work on the stream writes the weights.
  const Products run = {kName, rows_of(p), p.dtype, multiply, context, stream, false};
  return run({p.x, p.in_features, p.in_features, workspace, p.out_features}, p.y, p.dtype);
}

}  // extern "C"
