// The custom-op library: gives ONNX Runtime our kernels for the nodes of the domain "mamba_export".
//
// From any language: register this file with the session options (register_custom_ops_library in
// Python, RegisterCustomOpsLibrary in C++, RegisterCustomOpLibrary in C#) before the session is
// made.
#include <memory>
#include <mutex>

#include "library.h"

namespace mamba_ort {
namespace {

// An entry of the session's configuration, so that nobody need register twice: the runtime refuses
// that when it makes the session, and shows no other sign. mamba_export/runtime/native_library.py
// reads it.
constexpr char kRegisteredKey[] = "mamba_export.registered";

const CustomOp& self(const OrtCustomOp* op) { return static_cast<const CustomOp&>(*op); }

OrtElementType element_type(const CustomOp& op, size_t input) {
  static constexpr OrtElementType types[] = {kOrtFloat, kOrtFloat16, kOrtBFloat16};
  return op.description.inputs[input].is_fp32 ? kOrtFloat : types[op.dtype];
}

// The shape of y, with the sizes that the runtime knows before it runs. That of last_state is left
// to the run: a node may leave the output out, which this context does not show, and ONNX
// Runtime 1.20 ends the process when such an output gets a shape. What is wrong with a shape is
// said at the run, when all is known.
void infer_shapes(const CustomOp& op, OrtShapeInferContext* context) {
  const size_t input = like_input(op.description, 0);
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(op.api.ShapeInferContext_GetInputTypeShape(context, input, &info));
  const std::vector<int64_t> shape = shape_of(op.api, info);
  // An unknown shape looks like a scalar's here, and would be passed on as one.
  bool is_known = shape.size() == op.description.inputs[input].rank;
  std::vector<const char*> names(shape.size(), "");
  check(op.api.GetSymbolicDimensions(info, names.data(), names.size()));
  // A size that is unknown and has no name would be passed on as the number -1.
  for (size_t i = 0; i < shape.size(); ++i) is_known &= shape[i] >= 0 || names[i][0] != '\0';
  if (is_known) check(op.api.ShapeInferContext_SetOutputTypeShape(context, 0, info));
}

// The operators for one ONNX Runtime. A process may hold two (onnxruntime-genai brings its own);
// their objects must not be mixed, so each gets its own set. A set lives as long as the process:
// sessions hold pointers into it, and nobody tells us when the last one goes.
class Registration {
 public:
  explicit Registration(const OrtApiBase* runtime, const OrtApi* table)
      : runtime(runtime), api_(table) {}

  OrtStatus* add_to(OrtSessionOptions* options);

  const OrtApiBase* const runtime;

 private:
  OrtStatus* make_domain();

  OrtFunctions api_;
  std::vector<std::unique_ptr<CustomOp>> ops_;
  OrtCustomOpDomain* domain_ = nullptr;
};

OrtStatus* Registration::make_domain() {
  ops_.clear();
  for (const Operator& description : kOperators) {
    for (mamba_dtype dtype : {MAMBA_FP32, MAMBA_FP16, MAMBA_BF16}) {
      ops_.push_back(std::make_unique<CustomOp>(api_, description, dtype));
    }
  }
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = api_.CreateCustomOpDomain(kDomain, &domain)) return status;
  for (const auto& op : ops_) {
    if (OrtStatus* status = api_.CustomOpDomain_Add(domain, op.get())) return status;
  }
  domain_ = domain;
  return nullptr;
}

OrtStatus* Registration::add_to(OrtSessionOptions* options) {
  if (!domain_) {
    if (OrtStatus* status = make_domain()) return status;
  }
  if (OrtStatus* status = api_.AddCustomOpDomain(options, domain_)) return status;
  return api_.AddSessionConfigEntry(options, kRegisteredKey, "1");
}

// The set of this runtime, made at its first session.
Registration& registration_of(const OrtApiBase* runtime, const OrtApi* table) {
  static auto& all =
      *new std::vector<std::unique_ptr<Registration>>;  // outlives static destructors
  for (const auto& known : all) {
    if (known->runtime == runtime) return *known;
  }
  all.push_back(std::make_unique<Registration>(runtime, table));
  return *all.back();
}

OrtStatus* too_old(const OrtApiBase* runtime) {
  const OrtFunctions oldest(runtime->GetApi(1));  // creating a status is the table's first member
  try {
    const std::string text = std::string("mamba_export: ONNX Runtime ") +
                             runtime->GetVersionString() + " is too old for this library: 1." +
                             std::to_string(kOrtApiVersion) + " or newer is needed";
    return oldest.CreateStatus(kOrtFail, text.c_str());
  } catch (...) {
    return oldest.CreateStatus(kOrtFail, "mamba_export: ONNX Runtime is too old");
  }
}

}  // namespace

CustomOp::CustomOp(OrtFunctions api_, const Operator& description_, mamba_dtype dtype_)
    : OrtCustomOp{}, api(api_), description(description_), dtype(dtype_) {
  version = kOrtApiVersion;
  GetName = [](const OrtCustomOp* op) { return self(op).description.name; };
  GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  GetInputType = [](const OrtCustomOp* op, size_t index) { return element_type(self(op), index); };
  GetInputTypeCount = [](const OrtCustomOp* op) { return self(op).description.input_count; };
  GetOutputType = [](const OrtCustomOp* op, size_t index) {
    return element_type(self(op), like_input(self(op).description, index));
  };
  GetOutputTypeCount = [](const OrtCustomOp*) { return kOutputs; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return kOrtRequired; };
  // A model that never continues a sequence may leave last_state out.
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index == 0 ? kOrtRequired : kOrtOptional;
  };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return kOrtMemTypeDefault; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute;
  KernelDestroy = destroy_kernel;
  InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
    return guarded(self(op), [&] { infer_shapes(self(op), context); });
  };
}

}  // namespace mamba_ort

// What ONNX Runtime looks for in a custom-op library.
extern "C" MAMBA_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                  const OrtApiBase* runtime) noexcept {
  static std::mutex& mutex = *new std::mutex;
  const OrtApi* table = runtime->GetApi(kOrtApiVersion);
  if (!table) return mamba_ort::too_old(runtime);
  try {
    const std::lock_guard<std::mutex> lock(mutex);
    return mamba_ort::registration_of(runtime, table).add_to(options);
  } catch (...) {
    return OrtFunctions(table).CreateStatus(kOrtFail, "mamba_export: out of memory");
  }
}
