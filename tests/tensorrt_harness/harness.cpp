#include "harness.h"

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

// The version that this "runtime" says it has: a plugin library asks the library that its logger
// finder lies in.
static int32_t runtime_major = NV_TENSORRT_MAJOR;
extern "C" HARNESS_API int32_t getInferLibMajorVersion() noexcept { return runtime_major; }
extern "C" HARNESS_API int32_t getInferLibMinorVersion() noexcept { return 0; }

namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using Creator = nvinfer1::IPluginCreatorV3One;

std::string& log_text() {
  static thread_local std::string text;
  return text;
}

void note(const char* text) { log_text() += (log_text().empty() ? "" : "\n") + std::string(text); }

// Loggers and finders laid out as TensorRT 10 and 11 do, whatever headers this was compiled with.
struct Logger10 {
  virtual void log(int32_t, const char* text) noexcept { note(text); }
  virtual ~Logger10() = default;
};
struct Finder10 {
  virtual Logger10* findLogger() { return &logger; }
  virtual ~Finder10() = default;
  Logger10 logger;
};
struct Logger11 : nvinfer1::IVersionedInterface {
  nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
  virtual void log(int32_t, const char* text) noexcept { note(text); }
};
struct Finder11 : nvinfer1::IVersionedInterface {
  nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override {
    return {"ILoggerFinder", 1, 0};
  }
  virtual Logger11* findLogger() { return &logger; }
  Logger11 logger;
};

struct Library {
  nvinfer1::IPluginCreatorInterface* const* creators = nullptr;
  int32_t count = 0;

  Creator* at(int32_t index) const {
    return index >= 0 && index < count ? static_cast<Creator*>(creators[index]) : nullptr;
  }
};

IPluginV3& plugin_of(void* plugin) { return *static_cast<IPluginV3*>(plugin); }

template <typename Interface>
Interface& capability(void* plugin, PluginCapabilityType type) {
  return static_cast<Interface&>(*plugin_of(plugin).getCapabilityInterface(type));
}
nvinfer1::IPluginV3OneCore& core(void* plugin) {
  return capability<nvinfer1::IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
}
nvinfer1::IPluginV3OneBuild& build(void* plugin) {
  return capability<nvinfer1::IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
nvinfer1::IPluginV3OneRuntime& runtime(void* plugin) {
  return capability<nvinfer1::IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

// Axes that there is room for: a rank may be any number, to try what a plugin does with it.
int32_t axes_of(const harness_tensor& tensor) {
  return std::min(tensor.rank, nvinfer1::Dims::MAX_DIMS);
}

PluginTensorDesc desc_of(const harness_tensor& tensor) {
  PluginTensorDesc desc{};
  desc.dims.nbDims = tensor.rank;
  for (int32_t i = 0; i < axes_of(tensor); ++i) desc.dims.d[i] = tensor.sizes[i];
  desc.type = static_cast<DataType>(tensor.type);
  desc.format = static_cast<TensorFormat>(tensor.format);
  desc.scale = 1.0F;
  return desc;
}

std::vector<PluginTensorDesc> descs_of(const harness_tensor* tensors, int32_t count) {
  std::vector<PluginTensorDesc> descs;
  for (int32_t i = 0; i < count; ++i) descs.push_back(desc_of(tensors[i]));
  return descs;
}

std::vector<DynamicPluginTensorDesc> dynamic_descs_of(const harness_tensor* tensors,
                                                      int32_t count) {
  std::vector<DynamicPluginTensorDesc> descs;
  for (int32_t i = 0; i < count; ++i) {
    DynamicPluginTensorDesc dynamic{};
    dynamic.desc = desc_of(tensors[i]);
    dynamic.min = dynamic.max = dynamic.opt = dynamic.desc.dims;
    descs.push_back(dynamic);
  }
  return descs;
}

// A size of a shape: a constant, or a dynamic one with a number.
class Expr final : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr {
 public:
  Expr(int64_t size, int64_t number) : size_(size), number_(number) { mImpl = this; }
  bool isConstant() const noexcept override { return size_ >= 0; }
  int64_t getConstantValue() const noexcept override { return size_; }
  bool isSizeTensor() const noexcept override { return false; }
  int64_t shown() const { return size_ >= 0 ? size_ : -1 - number_; }

 private:
  int64_t size_, number_;
};

class ExprBuilder final : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder {
 public:
  ExprBuilder() { mImpl = this; }
  const nvinfer1::IDimensionExpr* constant(int64_t value) noexcept override {
    owned_.push_back(std::make_unique<Expr>(value, 0));
    return owned_.back().get();
  }
  const nvinfer1::IDimensionExpr* dynamic(int64_t number) {
    owned_.push_back(std::make_unique<Expr>(-1, number));
    return owned_.back().get();
  }
  // No operator of ours computes a size.
  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation,
                                            const nvinfer1::IDimensionExpr&,
                                            const nvinfer1::IDimensionExpr&) noexcept override {
    return nullptr;
  }
  const nvinfer1::IDimensionExpr* declareSizeTensor(
      int32_t, const nvinfer1::IDimensionExpr&, const nvinfer1::IDimensionExpr&) noexcept override {
    return nullptr;
  }

 private:
  std::vector<std::unique_ptr<Expr>> owned_;
};

class ResourceContext final : public nvinfer1::IPluginResourceContext {
 public:
  nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

int32_t copy_fields(const PluginFieldCollection* collection, harness_field* fields,
                    int32_t capacity) {
  if (!collection) return -1;
  for (int32_t i = 0; i < collection->nbFields && i < capacity; ++i) {
    const PluginField& field = collection->fields[i];
    fields[i] = {field.name, static_cast<int32_t>(field.type), field.length, field.data};
  }
  return collection->nbFields;
}

size_t bytes_of(const PluginField& field) {
  const bool is_number =
      field.type == PluginFieldType::kINT32 || field.type == PluginFieldType::kFLOAT32;
  const size_t each = is_number ? 4 : 1;
  return each * static_cast<size_t>(field.length);
}

}  // namespace

void* harness_open(const char* path, int32_t major) {
  void* handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
  if (!handle) {
    note(dlerror());
    return nullptr;
  }
  using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
  using SetLoggerFinder = void (*)(void*);
  const auto get_creators = reinterpret_cast<GetCreators>(dlsym(handle, "getCreators"));
  const auto set_finder = reinterpret_cast<SetLoggerFinder>(dlsym(handle, "setLoggerFinder"));
  if (!get_creators || !set_finder) {
    note("the library exports no getCreators or no setLoggerFinder");
    return nullptr;
  }
  static Finder10 finder10;
  static Finder11 finder11;
  runtime_major = major;
  set_finder(major == 0    ? nullptr
             : major >= 11 ? static_cast<void*>(&finder11)
                           : static_cast<void*>(&finder10));
  auto library = std::make_unique<Library>();
  library->creators = get_creators(library->count);
  return library.release();  // as long as the process
}

const char* harness_log() {
  static thread_local std::string shown;
  shown.swap(log_text());
  log_text().clear();
  return shown.c_str();
}

int32_t harness_creator_count(void* library) { return static_cast<Library*>(library)->count; }

const char* harness_creator_text(void* library, int32_t creator, int32_t part) {
  Creator* at = static_cast<Library*>(library)->at(creator);
  if (!at) return nullptr;
  if (part == 0) return at->getPluginName();
  if (part == 1) return at->getPluginVersion();
  return part == 2 ? at->getPluginNamespace() : at->getInterfaceInfo().kind;
}

int32_t harness_creator_fields(void* library, int32_t creator, harness_field* fields,
                               int32_t capacity) {
  Creator* at = static_cast<Library*>(library)->at(creator);
  return at ? copy_fields(at->getFieldNames(), fields, capacity) : -1;
}

void* harness_create(void* library, int32_t creator, const char* layer, const harness_field* fields,
                     int32_t field_count, int32_t phase) {
  Creator* at = static_cast<Library*>(library)->at(creator);
  if (!at) return nullptr;
  std::vector<PluginField> given;
  for (int32_t i = 0; i < field_count; ++i) {
    given.emplace_back(fields[i].name, fields[i].data, static_cast<PluginFieldType>(fields[i].type),
                       fields[i].length);
  }
  const PluginFieldCollection collection{field_count, given.data()};
  return at->createPlugin(layer, field_count < 0 ? nullptr : &collection,
                          static_cast<nvinfer1::TensorRTPhase>(phase));
}

void* harness_clone(void* plugin) { return plugin_of(plugin).clone(); }

void* harness_attach(void* plugin) {
  static ResourceContext context;
  return runtime(plugin).attachToContext(&context);
}

void* harness_reload(void* library, void* plugin) {
  const PluginFieldCollection* written = runtime(plugin).getFieldsToSerialize();
  if (!written) return nullptr;
  // An engine is one run of bytes: names and values lie in it unaligned.
  std::vector<std::string> names;
  std::vector<std::vector<char>> values;
  for (int32_t i = 0; i < written->nbFields; ++i) {
    names.emplace_back(written->fields[i].name);
    values.emplace_back(bytes_of(written->fields[i]) + 1);
    std::memcpy(values.back().data() + 1, written->fields[i].data, bytes_of(written->fields[i]));
  }
  std::vector<PluginField> fields;
  for (int32_t i = 0; i < written->nbFields; ++i) {
    fields.emplace_back(names[i].c_str(), values[i].data() + 1, written->fields[i].type,
                        written->fields[i].length);
  }
  const PluginFieldCollection collection{written->nbFields, fields.data()};
  const std::string name = core(plugin).getPluginName();
  for (int32_t i = 0; i < harness_creator_count(library); ++i) {
    Creator* at = static_cast<Library*>(library)->at(i);
    if (name == at->getPluginName()) {
      return at->createPlugin("reloaded", &collection, nvinfer1::TensorRTPhase::kRUNTIME);
    }
  }
  return nullptr;
}

void harness_destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }

const char* harness_plugin_text(void* plugin, int32_t part) {
  switch (part) {
    case 0:
      return core(plugin).getPluginName();
    case 1:
      return core(plugin).getPluginVersion();
    case 2:
      return core(plugin).getPluginNamespace();
    case 3:
      return build(plugin).getTimingCacheID();
    case 4:
      return build(plugin).getMetadataString();
    case 5:
      return core(plugin).getInterfaceInfo().kind;
    case 6:
      return build(plugin).getInterfaceInfo().kind;
    case 7:
      return runtime(plugin).getInterfaceInfo().kind;
  }
  return nullptr;
}

int32_t harness_plugin_fields(void* plugin, harness_field* fields, int32_t capacity) {
  return copy_fields(runtime(plugin).getFieldsToSerialize(), fields, capacity);
}

int32_t harness_supports(void* plugin, int32_t position, const harness_tensor* tensors,
                         int32_t inputs, int32_t outputs) {
  const auto descs = dynamic_descs_of(tensors, inputs + outputs);
  return build(plugin).supportsFormatCombination(position, descs.data(), inputs, outputs);
}

int32_t harness_output_types(void* plugin, const harness_tensor* inputs, int32_t count,
                             int32_t* types) {
  std::vector<DataType> given;
  for (int32_t i = 0; i < count; ++i) given.push_back(static_cast<DataType>(inputs[i].type));
  DataType answers[2] = {};
  const int32_t outputs = build(plugin).getNbOutputs();
  const int32_t status = build(plugin).getOutputDataTypes(answers, outputs, given.data(), count);
  for (int32_t i = 0; i < outputs; ++i) types[i] = static_cast<int32_t>(answers[i]);
  return status;
}

int32_t harness_output_shapes(void* plugin, const harness_tensor* inputs, int32_t count,
                              harness_tensor* outputs) {
  ExprBuilder builder;
  std::vector<DimsExprs> given(count);
  int64_t dynamic = 0;
  for (int32_t i = 0; i < count; ++i) {
    given[i].nbDims = inputs[i].rank;
    for (int32_t k = 0; k < axes_of(inputs[i]); ++k) {
      const int64_t size = inputs[i].sizes[k];
      given[i].d[k] = size >= 0 ? builder.constant(size) : builder.dynamic(dynamic++);
    }
  }
  DimsExprs shapes[2] = {};
  const int32_t made = build(plugin).getNbOutputs();
  const int32_t status =
      build(plugin).getOutputShapes(given.data(), count, nullptr, 0, shapes, made, builder);
  for (int32_t i = 0; status == 0 && i < made; ++i) {
    outputs[i].rank = shapes[i].nbDims;
    for (int32_t k = 0; k < shapes[i].nbDims; ++k) {
      outputs[i].sizes[k] = static_cast<const Expr*>(shapes[i].d[k])->shown();
    }
  }
  return status;
}

int32_t harness_configure(void* plugin, const harness_tensor* inputs, int32_t count,
                          const harness_tensor* outputs) {
  const int32_t made = build(plugin).getNbOutputs();
  const auto in = dynamic_descs_of(inputs, count), out = dynamic_descs_of(outputs, made);
  return build(plugin).configurePlugin(in.data(), count, out.data(), made);
}

size_t harness_workspace(void* plugin, const harness_tensor* largest, int32_t count,
                         const harness_tensor* outputs) {
  const int32_t made = build(plugin).getNbOutputs();
  const auto in = dynamic_descs_of(largest, count), out = dynamic_descs_of(outputs, made);
  return build(plugin).getWorkspaceSize(in.data(), count, out.data(), made);
}

int32_t harness_shape_change(void* plugin, const harness_tensor* inputs, int32_t count,
                             const harness_tensor* outputs) {
  const int32_t made = build(plugin).getNbOutputs();
  const auto in = descs_of(inputs, count), out = descs_of(outputs, made);
  return runtime(plugin).onShapeChange(in.data(), count, out.data(), made);
}

int32_t harness_enqueue(void* plugin, const harness_tensor* inputs, const harness_tensor* outputs,
                        int32_t count, const void* const* input_data, void* const* output_data,
                        void* workspace, void* stream) {
  const auto in = descs_of(inputs, count), out = descs_of(outputs, build(plugin).getNbOutputs());
  return runtime(plugin).enqueue(in.data(), out.data(), input_data, output_data, workspace,
                                 static_cast<cudaStream_t>(stream));
}
