// The custom-op library: gives ONNX Runtime our kernels for the nodes of the domain "mamba_export".
//
// From any language: register this file with the session options (register_custom_ops_library in
// Python, RegisterCustomOpsLibrary in C++, RegisterCustomOpLibrary in C#) before the session is
// made.
#include <cstring>
#include <memory>
#include <mutex>

#include "library.h"

namespace mamba_ort {
namespace {

// Entries of the session's configuration.
//
// Written here, so that nobody registers twice: the runtime refuses
// that when it makes the session, and shows no other sign.
// mamba_export/backends/onnxruntime/custom_ops.py reads it.
constexpr char kRegisteredKey[] = "mamba_export.registered";
// "1" where the session is to run on CUDA, set before this library is registered: then the
// operators that have a kernel for CUDA alone are registered too, and those that have one for CPUs
// alone are not. Registration is not told the
// providers, and ONNX Runtime looks at no function of an operator that is registered for any
// provider: on the CPU such a model would not load.
constexpr char kCudaKey[] = "mamba_export.cuda";

const CustomOp& self(const OrtCustomOp* op) { return static_cast<const CustomOp&>(*op); }

OrtElementType element_type(const CustomOp& op, const Tensor& tensor) {
  if (tensor.dtype == DtypeClass::kQ) {
    if (op.bits == 4) return op.description.has_signed_codes ? kOrtInt4 : kOrtUint4;
    return op.description.has_signed_codes ? kOrtInt8 : kOrtUint8;
  }
  static constexpr OrtElementType types[] = {kOrtFloat, kOrtFloat16, kOrtBFloat16};
  return types[op.dtypes.of(tensor)];
}

// The shape of the first output, with the sizes that the runtime knows before it runs. That of a
// last state is left to the run: a node may leave the output out, which this context does not show,
// and ONNX Runtime 1.20 ends the process when such an output gets a shape. What is wrong with a
// shape is said at the run, when all is known.
void infer_shapes(const CustomOp& op, OrtShapeInferContext* context) {
  const int32_t input = op.description.outputs[0].like;
  if (input == kNone) return;  // the file says it
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(op.api.ShapeInferContext_GetInputTypeShape(context, input, &info));
  const std::vector<int64_t> shape = shape_of(op.api, info);
  // An unknown shape looks like a scalar's here, and would be passed on as one.
  bool is_known = shape.size() == static_cast<size_t>(op.description.inputs[input].rank);
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
  // Operators under our domain's name; made when first asked for.
  struct Domain {
    CustomOps operators;
    OrtCustomOpDomain* domain = nullptr;
  };

  OrtStatus* make(Domain& domain, bool for_cuda);
  OrtStatus* is_for_cuda(const OrtSessionOptions* options, bool* answer) const;

  OrtFunctions api_;
  Domain everywhere_;  // for sessions on any provider
  Domain for_cuda_;    // for sessions on CUDA
};

OrtStatus* Registration::make(Domain& made, bool for_cuda) {
  if (made.domain) return nullptr;
  made.operators.clear();
  const bool has_cuda = *mamba_cuda_architectures() != '\0';
  const auto add = [&](const Operator& op, const Dtypes& dtypes, Provider on) {
    for (int bits : {0, 4, 8}) {
      if ((bits != 0) != op.is_packed()) continue;
      made.operators.push_back(std::make_unique<CustomOp>(api_, op, dtypes, bits, on));
    }
  };
  for (const Operator& op : kOperators) {
    // One that has a kernel for CUDA alone must stay unknown to other sessions.
    const bool runs_on_cuda = has_cuda && op.kernels->cuda && (op.has_cpu_kernel || for_cuda);
    // One that has a kernel for CPUs alone must stay unknown to sessions on CUDA.
    const bool runs_on_cpu = op.has_cpu_kernel && (op.kernels->cuda || !for_cuda);
    // Every choice of dtypes that export writes.
    for (mamba_dtype dtype : {MAMBA_FP32, MAMBA_FP16, MAMBA_BF16}) {
      if (op.is_packed() && dtype == MAMBA_BF16) continue;  // DequantizeLinear has none
      for (mamba_dtype residual : {MAMBA_FP32, dtype}) {
        for (mamba_dtype state : {MAMBA_FP32, dtype}) {
          if (runs_on_cpu) add(op, {dtype, residual, state}, kCpu);
          if (runs_on_cuda) add(op, {dtype, residual, state}, kCuda);
          if (!has_state_dtype(op) || dtype == MAMBA_FP32) break;  // they have one of states
        }
        if (!has_residual(op) || dtype == MAMBA_FP32) break;  // they have one residual dtype
      }
    }
  }
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = api_.CreateCustomOpDomain(kDomain, &domain)) return status;
  for (const auto& op : made.operators) {
    if (OrtStatus* status = api_.CustomOpDomain_Add(domain, op.get())) return status;
  }
  made.domain = domain;
  return nullptr;
}

OrtStatus* Registration::is_for_cuda(const OrtSessionOptions* options, bool* answer) const {
  *answer = false;
  int has = 0;
  if (OrtStatus* status = api_.HasSessionConfigEntry(options, kCudaKey, &has)) return status;
  if (!has) return nullptr;
  char value[8] = "";
  size_t size = sizeof value;
  if (OrtStatus* status = api_.GetSessionConfigEntry(options, kCudaKey, value, &size)) {
    return status;
  }
  *answer = std::strcmp(value, "1") == 0;
  return nullptr;
}

OrtStatus* Registration::add_to(OrtSessionOptions* options) {
  bool for_cuda = false;
  if (OrtStatus* status = is_for_cuda(options, &for_cuda)) return status;
  Domain& chosen = for_cuda ? for_cuda_ : everywhere_;
  if (OrtStatus* status = make(chosen, for_cuda)) return status;
  if (OrtStatus* status = api_.AddCustomOpDomain(options, chosen.domain)) return status;
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

CustomOp::CustomOp(OrtFunctions api_, const Operator& description_, Dtypes dtypes_, int bits_,
                   Provider provider_)
    : OrtCustomOp{},
      api(api_),
      description(description_),
      dtypes(dtypes_),
      bits(bits_),
      provider(provider_) {
  version = kOrtApiVersion;
  GetName = [](const OrtCustomOp* op) { return self(op).description.name; };
  GetExecutionProviderType = [](const OrtCustomOp* op) {
    return self(op).provider == kCuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
  };
  GetInputType = [](const OrtCustomOp* op, size_t index) {
    return element_type(self(op), self(op).description.inputs[index]);
  };
  GetInputTypeCount = [](const OrtCustomOp* op) -> size_t {
    return self(op).description.inputs.count;
  };
  GetOutputType = [](const OrtCustomOp* op, size_t index) {
    return element_type(self(op), self(op).description.outputs[index]);
  };
  GetOutputTypeCount = [](const OrtCustomOp* op) -> size_t {
    return self(op).description.outputs.count;
  };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return kOrtRequired; };
  // A model that never continues a sequence may leave last states out.
  GetOutputCharacteristic = [](const OrtCustomOp* op, size_t index) {
    const bool is_state = self(op).description.outputs[index].role == Role::kLastState;
    return is_state ? kOrtOptional : kOrtRequired;
  };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return kOrtMemTypeDefault; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute;
  KernelDestroy = destroy_kernel;
  InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
    return guarded(self(op).api, self(op).description.name,
                   [&] { infer_shapes(self(op), context); });
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
  } catch (const std::bad_alloc&) {
    return OrtFunctions(table).CreateStatus(kOrtFail, "mamba_export: failed to allocate memory");
  } catch (...) {
    return OrtFunctions(table).CreateStatus(kOrtRuntimeException, "mamba_export: an unknown error");
  }
}
