// A node of the graph: its attributes are read once, its shapes are checked and its kernel called
// at each run.
#include <cstring>
#include <memory>

#include "library.h"

namespace mamba_ort {
namespace {

// Attributes only: any number of threads may run one kernel.
struct Kernel {
  const CustomOp& op;
  bool reverse;
  bool flag;  // delta_softplus or silu
};

bool read_flag(const OrtFunctions& api, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  if (OrtStatus* status = api.KernelInfoGetAttribute_int64(info, name, &value)) {
    api.ReleaseStatus(status);
    // Export always writes it, and the function body has no default either.
    throw InputError(std::string("the integer attribute ") + name + " is missing");
  }
  if (value != 0 && value != 1) {
    throw InputError(std::string("attribute ") + name + " is " + std::to_string(value) +
                     ", expected 0 or 1");
  }
  return value == 1;
}

void check_version(const OrtFunctions& api, const OrtKernelInfo* info) {
  char version[16] = "";
  size_t size = sizeof version;
  if (OrtStatus* status =
          api.KernelInfoGetAttribute_string(info, kVersionAttribute, version, &size)) {
    api.ReleaseStatus(status);
    throw InputError(std::string("the text attribute ") + kVersionAttribute +
                     " is missing or too long");
  }
  if (std::strcmp(version, kVersion) != 0) {
    throw InputError(std::string("the file has version ") + version +
                     " of this operator, the library has version " + kVersion +
                     ": export the model again, or install the mamba_export that wrote it");
  }
}

// The runtime's thread pool behind the kernels' parallel_for.
struct Scheduler {
  const OrtFunctions& api;
  const OrtKernelContext* context;
  OrtStatus* failure = nullptr;  // parallel_for has no way to return it
};

void run_tasks(void* data, size_t tasks, void (*body)(void*, size_t), void* context) {
  auto& scheduler = *static_cast<Scheduler*>(data);
  OrtStatus* failure =
      scheduler.api.KernelContext_ParallelFor(scheduler.context, body, tasks, 0, context);
  if (!failure) return;
  if (scheduler.failure) scheduler.api.ReleaseStatus(scheduler.failure);
  scheduler.failure = failure;
}

// One run of a node.
class Call {
 public:
  Call(const Kernel& kernel, OrtKernelContext* context)
      : kernel_(kernel), api_(kernel.op.api), context_(context) {
    for (size_t i = 0; i < kernel.op.description.input_count; ++i) read_input(i);
    for (size_t i = 0; i < kOutputs; ++i) allocate_output(i);
  }

  void run() {
    Scheduler scheduler{api_, context_};
    const mamba_status status =
        kernel_.op.description.is_convolution ? run_convolution(&scheduler) : run_scan(&scheduler);
    check(scheduler.failure);
    if (status != MAMBA_OK) throw InputError(mamba_last_error());
  }

 private:
  void read_input(size_t index);
  void allocate_output(size_t index);
  mamba_status run_scan(Scheduler* scheduler) const;
  mamba_status run_convolution(Scheduler* scheduler) const;

  const float* numbers(size_t input) const { return static_cast<const float*>(inputs_[input]); }
  mamba_sequence sequence(size_t input, int64_t width) const {
    return {inputs_[input], sizes_[kLength] * width, width};
  }

  const Kernel& kernel_;
  const OrtFunctions& api_;
  OrtKernelContext* context_;
  Sizes sizes_;
  std::vector<int64_t> shapes_[kMostInputs];
  const void* inputs_[kMostInputs] = {};
  void* outputs_[kOutputs] = {};
  std::unique_ptr<char[]> unwanted_[kOutputs];
};

void Call::read_input(size_t index) {
  const OrtValue* value = nullptr;
  check(api_.KernelContext_GetInput(context_, index, &value));
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api_.GetTensorTypeAndShape(value, &info));
  const auto release = [this](OrtTensorTypeAndShapeInfo* p) {
    api_.ReleaseTensorTypeAndShapeInfo(p);
  };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> owner(info, release);
  shapes_[index] = shape_of(api_, info);
  sizes_.match(kernel_.op.description.inputs[index], shapes_[index].data(), shapes_[index].size());

  void* data = nullptr;  // the interface has no form for constant tensors; inputs are only read
  check(api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  inputs_[index] = data;
}

void Call::allocate_output(size_t index) {
  const size_t like = like_input(kernel_.op.description, index);
  const std::vector<int64_t>& shape = shapes_[like];
  OrtValue* value = nullptr;
  check(api_.KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
  if (value) {
    check(api_.GetTensorMutableData(value, &outputs_[index]));
    return;
  }
  // The graph leaves this output out; the kernel writes it all the same.
  const bool is_wide =
      kernel_.op.description.inputs[like].is_fp32 || kernel_.op.dtype == MAMBA_FP32;
  size_t bytes = is_wide ? 4 : 2;
  for (int64_t size : shape) bytes *= static_cast<size_t>(size);
  unwanted_[index].reset(new char[bytes]);
  outputs_[index] = unwanted_[index].get();
}

mamba_status Call::run_scan(Scheduler* scheduler) const {
  const int64_t inner = sizes_[kInner], per_step = sizes_[kGroups] * sizes_[kState];
  if (inner % sizes_[kGroups] != 0) {
    throw InputError("B has n_groups " + std::to_string(sizes_[kGroups]) +
                     ", which does not divide d_inner " + std::to_string(inner));
  }
  mamba_selective_scan_params p = {};
  p.batch = sizes_[kBatch];
  p.length = sizes_[kLength];
  p.d_inner = inner;
  p.d_state = sizes_[kState];
  p.n_groups = sizes_[kGroups];
  p.dtype = kernel_.op.dtype;
  p.delta_softplus = kernel_.flag;
  p.reverse = kernel_.reverse;
  size_t input = 0;  // in the contract's order
  p.u = sequence(input++, inner);
  p.delta = sequence(input++, inner);
  p.A = numbers(input++);
  p.B = sequence(input++, per_step);
  p.C = sequence(input++, per_step);
  p.D = numbers(input++);
  if (kernel_.op.description.has_gate) p.z = sequence(input++, inner);
  p.delta_bias = numbers(input++);
  p.initial_state = numbers(input++);
  p.y = outputs_[0];
  p.last_state = static_cast<float*>(outputs_[1]);
  return mamba_selective_scan_cpu(&p, run_tasks, scheduler);
}

mamba_status Call::run_convolution(Scheduler* scheduler) const {
  mamba_causal_conv1d_params p = {};
  p.batch = sizes_[kBatch];
  p.length = sizes_[kLength];
  p.channels = sizes_[kChannels];
  p.d_conv = sizes_[kTaps];
  p.dtype = kernel_.op.dtype;
  p.silu = kernel_.flag;
  p.reverse = kernel_.reverse;
  p.x = sequence(0, p.channels);
  p.weight = numbers(1);
  p.bias = numbers(2);
  p.initial_state = inputs_[3];
  p.y = outputs_[0];
  p.last_state = outputs_[1];
  return mamba_causal_conv1d_cpu(&p, run_tasks, scheduler);
}

}  // namespace

OrtStatus* create_kernel(const OrtCustomOp* base, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) noexcept {
  const auto& op = static_cast<const CustomOp&>(*base);
  return guarded(op, [&] {
    check_version(op.api, info);
    *kernel = new Kernel{op, read_flag(op.api, info, kReverse),
                         read_flag(op.api, info, op.description.flag)};
  });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) noexcept {
  const auto& self = *static_cast<const Kernel*>(kernel);
  return guarded(self.op, [&] { Call(self, context).run(); });
}

void destroy_kernel(void* kernel) noexcept { delete static_cast<Kernel*>(kernel); }

}  // namespace mamba_ort
