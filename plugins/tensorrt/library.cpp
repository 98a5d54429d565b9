// What TensorRT looks for in a plugin library: the creators, and where to log.
#include <NvInferRuntime.h>

#include <vector>

#include "log.h"
#include "plugin.h"

namespace mamba_trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::TensorRTPhase;

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Operator& op) : op_(op) {
    for (const Attribute& attribute : op.attributes) {
      fields_.push_back({attribute.name, nullptr, field_type(attribute), 1});
    }
    collection_.nbFields = op.attributes.count;
    collection_.fields = fields_.data();
  }

  nvinfer1::IPluginV3* createPlugin(const char* layer, const PluginFieldCollection* fields,
                                    TensorRTPhase phase) noexcept override {
    try {
      const Attributes attributes = read_fields(op_, fields, phase == TensorRTPhase::kRUNTIME);
      return new Plugin(op_, attributes, layer ? layer : "");
    } catch (...) {
      log_caught(op_.name, layer);
    }
    return nullptr;
  }

  // What the ONNX parser reads from a node.
  const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kDomain; }

 private:
  const Operator& op_;
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_;
};

// A creator for each form of an operator that TensorRT can run. As long as the process: engines
// hold plugins of them.
const std::vector<nvinfer1::IPluginCreatorInterface*>& creators() {
  static const auto& all = *new std::vector<nvinfer1::IPluginCreatorInterface*>([] {
    std::vector<nvinfer1::IPluginCreatorInterface*> made;
    for (const Operator& op : kOperators) {
      if (op.has_plugin) made.push_back(new Creator(op));
    }
    return made;
  }());
  return all;
}

}  // namespace
}  // namespace mamba_trt

#define MAMBA_TRT_EXPORT extern "C" __attribute__((visibility("default")))

MAMBA_TRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
  count = 0;
  try {
    const auto& all = mamba_trt::creators();
    count = static_cast<int32_t>(all.size());
    return all.data();
  } catch (...) {  // no memory
    return nullptr;
  }
}

MAMBA_TRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept {
  mamba_trt::set_logger_finder(finder);
}
