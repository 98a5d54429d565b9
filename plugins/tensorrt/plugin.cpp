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

// Whether a tensor at a position, which counts inputs, then outputs, may have its type.
// type_at(position) -> DataType answers for it and for the positions before it.
template <typename TypeAt>
bool is_right(const Operator& op, int32_t position, TypeAt type_at) {
  const DtypeClass dtype = at_position(op, position).dtype;
  const DataType type = type_at(position);
  if (dtype == DtypeClass::kFp32) return type == DataType::kFLOAT;
  const int32_t first = first_of(op, dtype);
  if (position != first) return type == type_at(first);
  if (dtype == DtypeClass::kT) return is_T(type);
  return type == DataType::kFLOAT || type == type_at(first_of(op, DtypeClass::kT));
}

void check_type(const Operator& op, int32_t input, const DataType* types) {
  if (is_right(op, input, [&](int32_t position) { return types[position]; })) return;
  const Tensor& tensor = op.inputs[input];
  const int32_t first = first_of(op, tensor.dtype), T = first_of(op, DtypeClass::kT);
  std::string expected = "fp32, fp16 or bf16";
  if (tensor.dtype == DtypeClass::kFp32) {
    expected = "fp32";
  } else if (input != first) {
    expected = name_of(types[first]) + ", as " + op.inputs[first].name + " has";
  } else if (tensor.dtype != DtypeClass::kT) {
    expected = "fp32 or " + name_of(types[T]) + ", as " + op.inputs[T].name + " has";
  }
  throw Refusal(std::string(tensor.name) + " has " + name_of(types[input]) + ", expected " +
                expected);
}

int64_t size_at(const nvinfer1::Dims& dims, int32_t axis) { return dims.d[axis]; }
int64_t size_at(const DimsExprs& dims, int32_t axis) {
  const bool is_known = dims.d[axis] && dims.d[axis]->isConstant();
  return is_known ? dims.d[axis]->getConstantValue() : Sizes::kUnknown;
}

// The sizes of a Dims or a DimsExprs, kUnknown for those that are not known yet.
class ReadShape {
 public:
  // Throws Refusal where they cannot be the axes of a tensor.
  template <typename Dims>
  ReadShape(const Tensor& tensor, const Dims& dims) : rank_(dims.nbDims) {
    constexpr int32_t kMost = nvinfer1::Dims::MAX_DIMS;
    if (rank_ < 0 || rank_ > kMost) {
      throw Refusal(std::string(tensor.name) + " has " + std::to_string(rank_) +
                    " axes, expected 0 to " + std::to_string(kMost));
    }
    for (int32_t i = 0; i < rank_; ++i) sizes_[i] = size_at(dims, i);
  }

  Shape view() const { return {sizes_, rank_}; }

 private:
  int64_t sizes_[nvinfer1::Dims::MAX_DIMS] = {};
  int32_t rank_;
};

// The sizes that the shapes of all inputs give; throws Refusal where they do not fit.
template <typename Dims>
Sizes match_shapes(const Operator& op, const Dims* inputs) {
  Sizes sizes(op);
  ReadShape shape{op.inputs[0], nvinfer1::Dims{}};
  sizes.match([&](int32_t input) {
    shape = ReadShape(op.inputs[input], inputs[input]);
    return shape.view();
  });
  return sizes;
}

std::string describe(const Operator& op, const Attributes& attributes) {
  std::string text = std::string(kContractVersionField) + "=" + std::to_string(kContractVersion);
  for (int32_t i = 0; i < op.attributes.count; ++i) {
    const double value = attributes.values[i];
    const bool is_flag = op.attributes[i].kind == AttributeKind::kFlag;
    text += std::string(" ") + op.attributes[i].name + "=" +
            (is_flag ? std::to_string(static_cast<int>(value)) : std::to_string(value));
  }
  return text;
}

}  // namespace

void log_caught(const char* operator_name, const char* layer) noexcept {
  try {
    try {
      throw;
    } catch (const std::exception& error) {
      log_error(operator_name, layer, text_of(error).c_str());
    }
  } catch (const std::bad_alloc&) {  // while the text was put together
    log_error(operator_name, layer, "failed to allocate memory");
  } catch (...) {
    log_error(operator_name, layer, "an unknown error");
  }
}

Plugin::Plugin(const Operator& op, const Attributes& attributes, std::string layer)
    : op_(op),
      attributes_(attributes),
      layer_(std::move(layer)),
      description_(describe(op, attributes)) {
  values_[0].number = kContractVersion;
  fields_[0] = {kContractVersionField, &values_[0].number, PluginFieldType::kINT32, 1};
  for (int32_t i = 0; i < op.attributes.count; ++i) {
    FieldValue& value = values_[1 + i];
    const PluginFieldType type = field_type(op.attributes[i]);
    value.number = static_cast<int32_t>(attributes.values[i]);
    value.real = static_cast<float>(attributes.values[i]);
    const void* data = &value.number;
    if (type == PluginFieldType::kFLOAT32) data = &value.real;
    fields_[1 + i] = {op.attributes[i].name, data, type, 1};
  }
  collection_.nbFields = 1 + op.attributes.count;
  collection_.fields = fields_;
}

template <typename Result, typename Body>
Result Plugin::guarded(Result failed, Body body) const noexcept {
  try {
    return body();
  } catch (...) {
    log_caught(op_.name, layer_.c_str());
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

int32_t Plugin::getNbOutputs() const noexcept { return op_.outputs.count; }

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                   int32_t input_count) const noexcept {
  return guarded(kFailure, [&] {
    check_counts(input_count, output_count);
    for (int32_t i = 0; i < input_count; ++i) check_type(op_, i, inputs);
    for (int32_t i = 0; i < output_count; ++i) outputs[i] = inputs[op_.outputs[i].like];
    return 0;
  });
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*,
                                int32_t shape_input_count, DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder&) noexcept {
  return guarded(kFailure, [&] {
    check_counts(input_count, output_count);
    if (shape_input_count != 0) throw Refusal("shape tensors are given, and none is taken");
    match_shapes(op_, inputs);
    for (int32_t i = 0; i < output_count; ++i) outputs[i] = inputs[op_.outputs[i].like];
    return 0;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                       int32_t input_count, int32_t output_count) noexcept {
  if (input_count != op_.inputs.count || output_count != op_.outputs.count) return false;
  if (position < 0 || position >= input_count + output_count) return false;
  const PluginTensorDesc& desc = tensors[position].desc;
  if (desc.format != TensorFormat::kLINEAR) return false;
  return is_right(op_, position, [&](int32_t at) { return tensors[at].desc.type; });
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*, int32_t output_count) noexcept {
  return guarded(kFailure, [&] {
    check_counts(input_count, output_count);
    PluginTensorDesc descs[kMaxInputs];
    for (int32_t i = 0; i < input_count; ++i) descs[i] = inputs[i].desc;
    check_types(descs);
    read_sizes(descs);
    return 0;
  });
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*,
                                int32_t output_count) const noexcept {
  return guarded(size_t{0}, [&] {
    check_counts(input_count, output_count);
    // Each size by the first tensor that gives it: what TensorRT estimates for one tensor need not
    // agree with what it estimates for another.
    Sizes sizes(op_);
    DataType types[kMaxInputs];
    for (int32_t i = 0; i < input_count; ++i) {
      types[i] = inputs[i].desc.type;
      sizes.estimate(op_.inputs[i], ReadShape(op_.inputs[i], inputs[i].max).view());
    }
    const Params largest = params(sizes, types, nullptr, nullptr);
    return op_.kernels->cuda_workspace(largest.get());
  });
}

// The part of the cache's key that is ours; TensorRT adds shapes and types.
const char* Plugin::getTimingCacheID() noexcept { return description_.c_str(); }
const char* Plugin::getMetadataString() noexcept { return description_.c_str(); }

// --- IPluginV3OneRuntime -------------------------------------------------------------------------

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return guarded<IPluginV3*>(nullptr, [&] {
    int device = 0;
    if (cudaError_t error = cudaGetDevice(&device)) {
      throw Failure(MAMBA_CUDA_ERROR, cudaGetErrorString(error));
    }
    check(mamba_cuda_check_device(device));
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
    if (!input_descs || !inputs || !outputs) throw Refusal("tensors are missing");
    check_types(input_descs);
    DataType types[kMaxInputs];
    for (int32_t i = 0; i < op_.inputs.count; ++i) types[i] = input_descs[i].type;
    const Params call = params(read_sizes(input_descs), types, inputs, outputs);
    check(op_.kernels->cuda(call.get(), workspace, stream));
    return 0;
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  return &collection_;
}

// --- Checks and calls ----------------------------------------------------------------------------

void Plugin::check_counts(int32_t input_count, int32_t output_count) const {
  const int32_t inputs = op_.inputs.count, outputs = op_.outputs.count;
  if (input_count == inputs && output_count == outputs) return;
  throw Refusal("it has " + std::to_string(input_count) + " inputs and " +
                std::to_string(output_count) + " outputs, expected " + std::to_string(inputs) +
                " and " + std::to_string(outputs));
}

void Plugin::check_types(const PluginTensorDesc* inputs) const {
  DataType types[kMaxInputs];
  for (int32_t i = 0; i < op_.inputs.count; ++i) types[i] = inputs[i].type;
  for (int32_t i = 0; i < op_.inputs.count; ++i) {
    check_type(op_, i, types);
    if (inputs[i].format != TensorFormat::kLINEAR) {
      throw Refusal(std::string(op_.inputs[i].name) + " is not in the linear format");
    }
  }
}

Sizes Plugin::read_sizes(const PluginTensorDesc* inputs) const {
  nvinfer1::Dims dims[kMaxInputs];
  for (int32_t i = 0; i < op_.inputs.count; ++i) dims[i] = inputs[i].dims;
  return match_shapes(op_, dims);
}

Params Plugin::params(const Sizes& sizes, const DataType* types, const void* const* inputs,
                      void* const* outputs) const {
  const auto dtype = [&](DtypeClass one) {
    const int32_t first = first_of(op_, one);
    return first == kNone ? MAMBA_FP32 : dtype_of(types[first]);
  };
  constexpr bool kConstantWeights = false;  // TensorRT does not say
  const Dtypes dtypes{dtype(DtypeClass::kT), dtype(DtypeClass::kR), dtype(DtypeClass::kS)};
  return fill(op_, {sizes, dtypes, attributes_.values, kConstantWeights, inputs, outputs});
}

}  // namespace mamba_trt
