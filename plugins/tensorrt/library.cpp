// What TensorRT looks for in a plugin library: the creators, and where to log.
#include <NvInferRuntime.h>

#include "log.h"
#include "plugin.h"

namespace mamba_trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Operator& op)
      : op_(op),
        fields_{{kReverse, nullptr, PluginFieldType::kINT32, 1},
                {op.flag, nullptr, PluginFieldType::kINT32, 1}} {
    collection_.nbFields = 2;
    collection_.fields = fields_;
  }

  nvinfer1::IPluginV3* createPlugin(const char* layer, const PluginFieldCollection* fields,
                                    TensorRTPhase phase) noexcept override {
    try {
      const Attributes attributes = read_fields(op_, fields, phase == TensorRTPhase::kRUNTIME);
      return new Plugin(op_, attributes, layer ? layer : "");
    } catch (const std::exception& error) {
      log_error(op_.name, layer, error.what());
    } catch (...) {
      log_error(op_.name, layer, "an unknown error");
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
  const PluginField fields_[2];
  PluginFieldCollection collection_;
};

}  // namespace
}  // namespace mamba_trt

#define MAMBA_TRT_EXPORT extern "C" __attribute__((visibility("default")))

MAMBA_TRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
  using namespace mamba_trt;
  static_assert(kOperatorCount == 3, "a creator for each operator");
  // As long as the process: engines hold plugins of them.
  static Creator creators[] = {Creator(kOperators[0]), Creator(kOperators[1]),
                               Creator(kOperators[2])};
  static nvinfer1::IPluginCreatorInterface* const pointers[] = {&creators[0], &creators[1],
                                                                &creators[2]};
  count = kOperatorCount;
  return pointers;
}

MAMBA_TRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept {
  mamba_trt::set_logger_finder(finder);
}
