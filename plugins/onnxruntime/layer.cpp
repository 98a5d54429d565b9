#include "layer.h"

#include "context.h"
#include "cuda_device.h"
#include "layer_products.h"

namespace mamba_ort {
namespace {

constexpr char kName[] = "MambaLayer";
constexpr char kEpsilon[] = "epsilon";

// In the contract's order. hidden is of the residual stream's dtype.
enum Position {
  kHidden,
  kNormWeight,
  kInProjWeight,
  kConvWeight,
  kConvBias,
  kXProjWeight,
  kDtProjWeight,
  kDtBias,
  kDecay,
  kSkip,
  kOutProjWeight,
  kPastConv,
  kPastRecurrent,
  kInputs
};
constexpr Tensor kTensors[kInputs] = {
    {"hidden", false, 3, {{kBatch}, {kLength}, {kModel}}},
    {"norm_weight", true, 1, {{kModel}}},
    {"in_proj_weight", false, 2, {{kModel}, {kTwoInner}}},
    {"conv_weight", true, 2, {{kInner}, {kTaps}}},
    {"conv_bias", true, 1, {{kInner}}},
    {"x_proj_weight", false, 2, {{kInner}, {kProjected}}},
    {"dt_proj_weight", false, 2, {{kRank}, {kInner}}},
    {"dt_bias", true, 1, {{kInner}}},
    {"A", true, 2, {{kInner}, {kState}}},
    {"D", true, 1, {{kInner}}},
    {"out_proj_weight", false, 2, {{kInner}, {kModel}}},
    {"conv_state", false, 3, {{kBatch}, {kInner}, {kTaps, 1}}},
    {"recurrent_state", true, 3, {{kBatch}, {kInner}, {kState}}},
};
constexpr bool is_weight(size_t input) { return input >= kNormWeight && input <= kOutProjWeight; }

constexpr Position kOutputLike[] = {kHidden, kPastConv, kPastRecurrent};
constexpr size_t kLayerOutputs = 3;

struct LayerOp : OrtCustomOp {
  LayerOp(OrtFunctions api, mamba_dtype dtype, mamba_dtype hidden_dtype);

  mamba_dtype dtype_of(size_t input) const {
    if (input == kHidden) return hidden_dtype;
    return kTensors[input].is_fp32 ? MAMBA_FP32 : dtype;
  }

  OrtFunctions api;
  mamba_dtype dtype, hidden_dtype;
};

const LayerOp& self(const OrtCustomOp* op) { return static_cast<const LayerOp&>(*op); }

OrtElementType element_type(const LayerOp& op, size_t input) {
  static constexpr OrtElementType types[] = {kOrtFloat, kOrtFloat16, kOrtBFloat16};
  return types[op.dtype_of(input)];
}

// What is known of a node before it runs: any number of threads may run one kernel.
struct LayerKernel {
  const LayerOp& op;
  float epsilon;
  bool has_constant_weights;
};

float read_epsilon(const OrtFunctions& api, const OrtKernelInfo* info) {
  float value = 0.f;
  if (OrtStatus* status = api.KernelInfoGetAttribute_float(info, kEpsilon, &value)) {
    api.ReleaseStatus(status);
    throw Refusal(std::string("the number attribute ") + kEpsilon + " is missing");
  }
  return value;
}

// Whether every weight is stored in the file. One that the graph computes may still be on its way
// when the layer is queued.
bool read_constancy(const OrtFunctions& api, const OrtKernelInfo* info) {
  bool answer = true;
  for (size_t i = 0; i < kInputs; ++i) {
    if (!is_weight(i)) continue;
    int is_constant = 0;
    const OrtValue* value = nullptr;
    check(api.KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value));
    answer &= is_constant != 0;
  }
  return answer;
}

// One run of a node.
class LayerCall {
 public:
  LayerCall(const LayerKernel& kernel, OrtKernelContext* context)
      : kernel_(kernel), api_(kernel.op.api), context_(context), scratch_(api_, context, kCuda) {
    for (size_t i = 0; i < kInputs; ++i) {
      inputs_[i] = read_input(api_, context, i);
      sizes_.match(kTensors[i], inputs_[i].shape.data(), inputs_[i].shape.size());
    }
    check_widths();
  }

  void run() {
    const mamba_layer_params p = params();
    void* workspace = scratch_.take(mamba_layer_cuda_workspace(&p), "the layer's workspace");
    void* stream = stream_of(api_, context_);
    if (mamba_layer_is_step_cuda(&p)) return check(mamba_layer_step_cuda(&p, workspace, stream));
    Products products(api_, context_);
    check(mamba_layer_cuda(&p, multiply, &products, workspace, stream));
  }

 private:
  void check_widths() const {
    if (sizes_[kTwoInner] != 2 * sizes_[kInner]) {
      throw Refusal("in_proj_weight has " + std::to_string(sizes_[kTwoInner]) +
                    " columns, expected 2 * d_inner = " + std::to_string(2 * sizes_[kInner]));
    }
    const int64_t projected = sizes_[kRank] + 2 * sizes_[kState];
    if (sizes_[kProjected] != projected) {
      throw Refusal("x_proj_weight has " + std::to_string(sizes_[kProjected]) +
                    " columns, expected dt_rank + 2 * d_state = " + std::to_string(projected));
    }
  }

  const float* numbers(Position input) const {
    return static_cast<const float*>(inputs_[input].data);
  }

  // The output's memory; one that the graph leaves out is written all the same.
  void* output(size_t index) {
    const Position like = kOutputLike[index];
    const std::vector<int64_t>& shape = inputs_[like].shape;
    void* data = make_output(api_, context_, index, shape);
    if (data) return data;
    size_t bytes = kernel_.op.dtype_of(like) == MAMBA_FP32 ? 4 : 2;
    for (int64_t size : shape) bytes *= static_cast<size_t>(size);
    // A convolution of one tap has a state without elements.
    return bytes > 0 ? scratch_.take(bytes, "an output that the graph leaves out") : nullptr;
  }

  mamba_layer_params params() {
    mamba_layer_params p = {};
    p.batch = sizes_[kBatch];
    p.length = sizes_[kLength];
    p.d_model = sizes_[kModel];
    p.d_inner = sizes_[kInner];
    p.d_state = sizes_[kState];
    p.d_conv = sizes_[kTaps];
    p.dt_rank = sizes_[kRank];
    p.dtype = kernel_.op.dtype;
    p.hidden_dtype = kernel_.op.hidden_dtype;
    p.epsilon = kernel_.epsilon;
    p.constant_weights = kernel_.has_constant_weights;
    p.hidden = inputs_[kHidden].data;
    p.norm_weight = numbers(kNormWeight);
    p.in_proj_weight = inputs_[kInProjWeight].data;
    p.conv_weight = numbers(kConvWeight);
    p.conv_bias = numbers(kConvBias);
    p.x_proj_weight = inputs_[kXProjWeight].data;
    p.dt_proj_weight = inputs_[kDtProjWeight].data;
    p.dt_bias = numbers(kDtBias);
    p.A = numbers(kDecay);
    p.D = numbers(kSkip);
    p.out_proj_weight = inputs_[kOutProjWeight].data;
    p.conv_state = inputs_[kPastConv].data;
    p.recurrent_state = numbers(kPastRecurrent);
    p.hidden_out = output(0);
    p.last_conv_state = output(1);
    p.last_recurrent_state = static_cast<float*>(output(2));
    return p;
  }

  const LayerKernel& kernel_;
  const OrtFunctions& api_;
  OrtKernelContext* context_;
  Scratch scratch_;
  Sizes sizes_;
  Input inputs_[kInputs] = {};
};

OrtStatus* create(const OrtCustomOp* base, const OrtApi*, const OrtKernelInfo* info,
                  void** kernel) noexcept {
  const LayerOp& op = self(base);
  return guarded(op.api, kName, [&] {
    check_version(op.api, info);
    check(mamba_cuda_check_device(current_device()));
    *kernel = new LayerKernel{op, read_epsilon(op.api, info), read_constancy(op.api, info)};
  });
}

OrtStatus* run_layer(void* kernel, OrtKernelContext* context) noexcept {
  const auto& layer = *static_cast<const LayerKernel*>(kernel);
  return guarded(layer.op.api, kName, [&] { LayerCall(layer, context).run(); });
}

LayerOp::LayerOp(OrtFunctions api_, mamba_dtype dtype_, mamba_dtype hidden_dtype_)
    : OrtCustomOp{}, api(api_), dtype(dtype_), hidden_dtype(hidden_dtype_) {
  version = kOrtApiVersion;
  GetName = [](const OrtCustomOp*) { return kName; };
  GetExecutionProviderType = [](const OrtCustomOp*) { return "CUDAExecutionProvider"; };
  GetInputType = [](const OrtCustomOp* op, size_t index) { return element_type(self(op), index); };
  GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputs; };
  GetOutputType = [](const OrtCustomOp* op, size_t index) {
    return element_type(self(op), kOutputLike[index]);
  };
  GetOutputTypeCount = [](const OrtCustomOp*) { return kLayerOutputs; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return kOrtRequired; };
  // A model that never continues a sequence may leave the states out.
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index == 0 ? kOrtRequired : kOrtOptional;
  };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return kOrtMemTypeDefault; };
  CreateKernelV2 = create;
  KernelComputeV2 = run_layer;
  KernelDestroy = [](void* kernel) { delete static_cast<LayerKernel*>(kernel); };
}

}  // namespace

void add_layer(const OrtFunctions& api, Operators& operators) {
  for (mamba_dtype dtype : {MAMBA_FP32, MAMBA_FP16, MAMBA_BF16}) {
    operators.push_back(std::make_shared<LayerOp>(api, dtype, MAMBA_FP32));
    if (dtype != MAMBA_FP32) operators.push_back(std::make_shared<LayerOp>(api, dtype, dtype));
  }
}

}  // namespace mamba_ort
