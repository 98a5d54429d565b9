#include "plugin.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "log.h"

namespace mamba_trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr int32_t kFailure = -1;

bool is_T(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

mamba_dtype dtype_of(DataType type) {
  if (type == DataType::kHALF) return MAMBA_FP16;
  return type == DataType::kBF16 ? MAMBA_BF16 : MAMBA_FP32;
}

std::string name_of(DataType type) {
  if (type == DataType::kFLOAT) return "fp32";
  if (type == DataType::kHALF) return "fp16";
  if (type == DataType::kBF16) return "bf16";
  return "TensorRT's data type " + std::to_string(static_cast<int32_t>(type));
}

void check_type(const Operator& op, int32_t input, DataType type, DataType T) {
  const Tensor& tensor = op.inputs[input];
  const bool is_right = tensor.is_fp32 ? type == DataType::kFLOAT : is_T(type) && type == T;
  if (is_right) return;
  std::string expected = "fp32, fp16 or bf16";
  if (tensor.is_fp32) {
    expected = "fp32";
  } else if (input > 0) {
    expected = name_of(T) + ", as " + op.inputs[0].name + " has";
  }
  throw Refusal(std::string(tensor.name) + " has " + name_of(type) + ", expected " + expected);
}

// Dims and DimsExprs hold up to 8 axes: the sizes, kUnknown for those that are not known yet.
struct Shape {
  int64_t sizes[nvinfer1::Dims::MAX_DIMS] = {};
  int32_t rank = 0;

  explicit Shape(const nvinfer1::Dims& dims) : rank(dims.nbDims) {
    for (int32_t i = 0; i < rank; ++i) sizes[i] = dims.d[i];
  }
  explicit Shape(const DimsExprs& dims) : rank(dims.nbDims) {
    for (int32_t i = 0; i < rank; ++i) {
      const bool is_known = dims.d[i] && dims.d[i]->isConstant();
      sizes[i] = is_known ? dims.d[i]->getConstantValue() : Sizes::kUnknown;
    }
  }
};

std::string describe(const Operator& op, Attributes attributes) {
  return std::string(kContractVersionField) + "=" + std::to_string(kContractVersion) + " " +
         kReverse + "=" + std::to_string(attributes.reverse) + " " + op.flag + "=" +
         std::to_string(attributes.flag);
}

}  // namespace

Plugin::Plugin(const Operator& op, Attributes attributes, std::string layer)
    : op_(op),
      attributes_(attributes),
      layer_(std::move(layer)),
      description_(describe(op, attributes)),
      values_{kContractVersion, attributes.reverse, attributes.flag},
      fields_{{kContractVersionField, &values_[0], PluginFieldType::kINT32, 1},
              {kReverse, &values_[1], PluginFieldType::kINT32, 1},
              {op.flag, &values_[2], PluginFieldType::kINT32, 1}} {
  collection_.nbFields = 3;
  collection_.fields = fields_;
}

template <typename Result, typename Body>
Result Plugin::guarded(Result failed, Body body) const noexcept {
  try {
    return body();
  } catch (const std::exception& error) {  // a Refusal, or no memory
    log_error(op_.name, layer_.c_str(), error.what());
  } catch (...) {
    log_error(op_.name, layer_.c_str(), "an unknown error");
  }
  return failed;
}

// --- IPluginV3 -----------------------------------------------------------------------------------

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE:
      return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
      return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME:
      return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::copy() const { return new Plugin(op_, attributes_, layer_); }

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded<IPluginV3*>(nullptr, [&] { return copy(); });
}

// --- IPluginV3OneCore ----------------------------------------------------------------------------

const char* Plugin::getPluginName() const noexcept { return op_.name; }
const char* Plugin::getPluginVersion() const noexcept { return kVersion; }
const char* Plugin::getPluginNamespace() const noexcept { return kDomain; }

// --- IPluginV3OneBuild ---------------------------------------------------------------------------

int32_t Plugin::getNbOutputs() const noexcept { return kOutputs; }

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                   int32_t input_count) const noexcept {
  return guarded(kFailure, [&] {
    check_counts(input_count, output_count);
    for (int32_t i = 0; i < input_count; ++i) check_type(op_, i, inputs[i], inputs[0]);
    for (int32_t i = 0; i < kOutputs; ++i) outputs[i] = inputs[like_input(op_, i)];
    return 0;
  });
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*,
                                int32_t shape_input_count, DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder&) noexcept {
  return guarded(kFailure, [&] {
    check_counts(input_count, output_count);
    if (shape_input_count != 0) throw Refusal("shape tensors are given, and none is taken");
    Sizes sizes;
    for (int32_t i = 0; i < input_count; ++i) {
      const Shape shape(inputs[i]);
      sizes.match(op_.inputs[i], shape.sizes, shape.rank);
    }
    sizes.check_groups();
    for (int32_t i = 0; i < kOutputs; ++i) outputs[i] = inputs[like_input(op_, i)];
    return 0;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                       int32_t input_count, int32_t output_count) noexcept {
  if (input_count != op_.input_count || output_count != kOutputs) return false;
  if (position < 0 || position >= input_count + output_count) return false;
  const PluginTensorDesc& desc = tensors[position].desc;
  if (desc.format != TensorFormat::kLINEAR) return false;
  if (at_position(op_, position).is_fp32) return desc.type == DataType::kFLOAT;
  return is_T(desc.type) && desc.type == tensors[0].desc.type;
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*, int32_t output_count) noexcept {
  return guarded(kFailure, [&] {
    check_counts(input_count, output_count);
    PluginTensorDesc descs[kMostInputs];
    for (int32_t i = 0; i < input_count; ++i) descs[i] = inputs[i].desc;
    check_types(descs);
    read_sizes(descs);
    return 0;
  });
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*,
                                int32_t output_count) const noexcept {
  if (op_.is_convolution) return 0;
  return guarded(size_t{0}, [&] {
    check_counts(input_count, output_count);
    // Each tensor's largest shape by itself: what TensorRT estimates for one tensor need not agree
    // with what it estimates for another.
    const nvinfer1::Dims &u = inputs[0].max, &A = inputs[2].max, &B = inputs[3].max;
    Sizes sizes;
    sizes.match(op_.inputs[0], Shape(u).sizes, u.nbDims);
    sizes.match(op_.inputs[2], Shape(A).sizes, A.nbDims);
    const int64_t groups[] = {Sizes::kUnknown, Sizes::kUnknown, Shape(B).sizes[2], Sizes::kUnknown};
    sizes.match(op_.inputs[3], groups, B.nbDims);
    const mamba_selective_scan_params params = scan_params(sizes, dtype_of(inputs[0].desc.type));
    return mamba_selective_scan_cuda_workspace(&params);
  });
}

// The part of the cache's key that is ours; TensorRT adds shapes and types.
const char* Plugin::getTimingCacheID() noexcept { return description_.c_str(); }
const char* Plugin::getMetadataString() noexcept { return description_.c_str(); }

// --- IPluginV3OneRuntime -------------------------------------------------------------------------

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return guarded<IPluginV3*>(nullptr, [&] {
    int device = 0;
    if (cudaError_t error = cudaGetDevice(&device)) throw Refusal(cudaGetErrorString(error));
    if (mamba_cuda_check_device(device) != MAMBA_OK) throw Refusal(mamba_last_error());
    return copy();
  });
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count,
                              const PluginTensorDesc*, int32_t output_count) noexcept {
  return guarded(kFailure, [&] {
    check_counts(input_count, output_count);
    check_types(inputs);
    read_sizes(inputs);
    return 0;
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
  return guarded(kFailure, [&] {
    const Sizes sizes = read_sizes(input_descs);
    const mamba_dtype dtype = dtype_of(input_descs[0].type);
    const mamba_status status = op_.is_convolution
                                    ? run_convolution(sizes, dtype, inputs, outputs, stream)
                                    : run_scan(sizes, dtype, inputs, outputs, workspace, stream);
    if (status != MAMBA_OK) throw Refusal(mamba_last_error());
    return 0;
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  return &collection_;
}

// --- Checks and calls ----------------------------------------------------------------------------

void Plugin::check_counts(int32_t input_count, int32_t output_count) const {
  if (input_count != op_.input_count || output_count != kOutputs) {
    throw Refusal("it has " + std::to_string(input_count) + " inputs and " +
                  std::to_string(output_count) + " outputs, expected " +
                  std::to_string(op_.input_count) + " and " + std::to_string(kOutputs));
  }
}

void Plugin::check_types(const PluginTensorDesc* inputs) const {
  for (int32_t i = 0; i < op_.input_count; ++i) {
    check_type(op_, i, inputs[i].type, inputs[0].type);
    if (inputs[i].format != TensorFormat::kLINEAR) {
      throw Refusal(std::string(op_.inputs[i].name) + " is not in the linear format");
    }
  }
}

Sizes Plugin::read_sizes(const PluginTensorDesc* inputs) const {
  Sizes sizes;
  for (int32_t i = 0; i < op_.input_count; ++i) {
    const Shape shape(inputs[i].dims);
    sizes.match(op_.inputs[i], shape.sizes, shape.rank);
  }
  sizes.check_groups();
  return sizes;
}

mamba_selective_scan_params Plugin::scan_params(const Sizes& sizes, mamba_dtype dtype) const {
  mamba_selective_scan_params p = {};
  p.batch = sizes[kBatch];
  p.length = sizes[kLength];
  p.d_inner = sizes[kInner];
  p.d_state = sizes[kState];
  p.n_groups = sizes[kGroups];
  p.dtype = dtype;
  p.delta_softplus = attributes_.flag;
  p.reverse = attributes_.reverse;
  return p;
}

mamba_status Plugin::run_scan(const Sizes& sizes, mamba_dtype dtype, const void* const* inputs,
                              void* const* outputs, void* workspace, cudaStream_t stream) const {
  mamba_selective_scan_params p = scan_params(sizes, dtype);
  int32_t next = 0;  // in the contract's order
  const auto numbers = [&] { return static_cast<const float*>(inputs[next++]); };
  const auto sequence = [&](int64_t width) {
    return mamba_sequence{inputs[next++], p.length * width, width};
  };
  p.u = sequence(p.d_inner);
  p.delta = sequence(p.d_inner);
  p.A = numbers();
  p.B = sequence(p.n_groups * p.d_state);
  p.C = sequence(p.n_groups * p.d_state);
  p.D = numbers();
  if (op_.has_gate) p.z = sequence(p.d_inner);
  p.delta_bias = numbers();
  p.initial_state = numbers();
  p.y = outputs[0];
  p.last_state = static_cast<float*>(outputs[1]);
  return mamba_selective_scan_cuda(&p, workspace, stream);
}

mamba_status Plugin::run_convolution(const Sizes& sizes, mamba_dtype dtype,
                                     const void* const* inputs, void* const* outputs,
                                     cudaStream_t stream) const {
  mamba_causal_conv1d_params p = {};
  p.batch = sizes[kBatch];
  p.length = sizes[kLength];
  p.channels = sizes[kChannels];
  p.d_conv = sizes[kTaps];
  p.dtype = dtype;
  p.silu = attributes_.flag;
  p.reverse = attributes_.reverse;
  p.x = {inputs[0], p.length * p.channels, p.channels};
  p.weight = static_cast<const float*>(inputs[1]);
  p.bias = static_cast<const float*>(inputs[2]);
  p.initial_state = inputs[3];
  p.y = outputs[0];
  p.last_state = outputs[1];
  return mamba_causal_conv1d_cuda(&p, stream);
}

}  // namespace mamba_trt
