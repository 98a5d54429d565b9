// A node of an engine: one of our operators as TensorRT sees it.
#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "contract.h"

namespace mamba_trt {

using namespace mamba_contract;

constexpr char kContractVersionField[] = "contract_version";  // written into an engine

// TensorRT chooses the types of tensors in their order: T's first, then those that follow it.
constexpr bool begins_with_T() {
  for (const Operator& op : kOperators) {
    if (op.has_plugin && first_of(op, DtypeClass::kT) != 0) return false;
  }
  return true;
}
static_assert(begins_with_T(), "a type is checked by those of the tensors before it");

// The attributes of a node, as an engine stores them.
struct Attributes {
  AttributeValues values = {};
};

nvinfer1::PluginFieldType field_type(const Attribute& attribute);

// Reads and checks the fields that TensorRT passes: throws Refusal where one is unknown, missing,
// of another type or out of range. An engine names the contract's version too; an ONNX node, whose
// plugin_version TensorRT has compared, need not.
Attributes read_fields(const Operator& op, const nvinfer1::PluginFieldCollection* fields,
                       bool from_engine);

// Logs the exception that is being handled as an error of a node.
void log_caught(const char* operator_name, const char* layer) noexcept;

// Holds its attributes alone, so that clones are cheap and any number of threads may run them.
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(const Operator& op, const Attributes& attributes, std::string layer);
  Plugin(const Plugin&) = delete;
  Plugin& operator=(const Plugin&) = delete;

  // --- IPluginV3. getInterfaceInfo is left to the bases: each answers for itself.
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // --- IPluginV3OneCore
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  // --- IPluginV3OneBuild
  int32_t getNbOutputs() const noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count,
                             const nvinfer1::DataType* inputs,
                             int32_t input_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) const noexcept override;
  const char* getTimingCacheID() noexcept override;
  const char* getMetadataString() noexcept override;

  // --- IPluginV3OneRuntime
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc* outputs,
                        int32_t output_count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs,
                  const nvinfer1::PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  // Runs body; what it throws becomes a line in the runtime's log, and `failed`.
  template <typename Result, typename Body>
  Result guarded(Result failed, Body body) const noexcept;

  void check_counts(int32_t input_count, int32_t output_count) const;
  void check_types(const nvinfer1::PluginTensorDesc* inputs) const;
  Sizes read_sizes(const nvinfer1::PluginTensorDesc* inputs) const;
  nvinfer1::IPluginV3* copy() const;
  Params params(const Sizes& sizes, const nvinfer1::DataType* types, const void* const* inputs,
                void* const* outputs) const;

  const Operator& op_;
  const Attributes attributes_;
  const std::string layer_;  // for messages
  const std::string description_;
  // What getFieldsToSerialize shows: the contract's version and the attributes' values, the fields
  // that point to them, and the collection.
  struct FieldValue {
    int32_t number;
    float real;
  } values_[1 + kMaxAttributes];
  nvinfer1::PluginField fields_[1 + kMaxAttributes];
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace mamba_trt
