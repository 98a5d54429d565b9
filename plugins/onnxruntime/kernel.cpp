// A node of the graph: its attributes are read once, its shapes are checked and its kernel called
// at each run.
#include "common/sizes.h"
#include "context.h"
#include "cuda_device.h"
#include "products.h"

namespace mamba_ort {
namespace {

// What is known of a node before it runs: any number of threads may run one kernel.
struct Kernel {
  const CustomOp& op;
  AttributeValues attributes = {};
  bool has_constant_weights = false;

  Kernel(const CustomOp& op, const OrtKernelInfo* info);
};

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

Kernel::Kernel(const CustomOp& op_, const OrtKernelInfo* info) : op(op_) {
  const Operator& description = op.description;
  for (int32_t i = 0; i < description.attributes.count; ++i) {
    attributes[i] = read_attribute(op.api, info, description.attributes[i]);
  }
  if (description.constant_weights_offset == kNone) return;
  // A weight that the graph computes may still be on its way when the node is queued.
  has_constant_weights = true;
  for (int32_t i = 0; i < description.inputs.count; ++i) {
    const bool is_weight = description.inputs[i].role == Role::kWeight;
    if (is_weight && !is_constant(op.api, info, i)) has_constant_weights = false;
  }
}

// One run of a node.
class Call {
 public:
  Call(const Kernel& kernel, OrtKernelContext* context)
      : kernel_(kernel),
        op_(kernel.op.description),
        api_(kernel.op.api),
        context_(context),
        scratch_(api_, context, kernel.op.provider),
        sizes_(op_) {
    for (int32_t i = 0; i < op_.inputs.count; ++i) {
      inputs_[i] = read_input(api_, context, i, op_.inputs[i].name);
      input_data_[i] = inputs_[i].data;
    }
    sizes_.match([this](int32_t input) {
      const std::vector<int64_t>& shape = inputs_[input].shape;
      return Shape{shape.data(), static_cast<int32_t>(shape.size())};
    });
    for (int32_t i = 0; i < op_.outputs.count; ++i) allocate_output(i);
  }

  void run() {
    const CustomOp& op = kernel_.op;
    const Params params = fill(op_, {sizes_, op.dtypes, kernel_.attributes,
                                     kernel_.has_constant_weights, input_data_, outputs_, op.bits});
    return op.provider == kCpu ? run_on_cpu(params.get()) : run_on_cuda(params.get());
  }

 private:
  void allocate_output(int32_t index);

  void run_on_cpu(const void* params) const {
    Scheduler scheduler{api_, context_};
    const mamba_status status = op_.kernels->cpu(params, run_tasks, &scheduler);
    check(scheduler.failure);
    check(status);
  }

  void run_on_cuda(const void* params) {
    const Kernels& kernels = *op_.kernels;
    const auto bytes = static_cast<int64_t>(kernels.cuda_workspace(params));
    void* workspace = bytes > 0 ? scratch_.take(bytes, "the operator's workspace") : nullptr;
    void* stream = stream_of(api_, context_);
    if (!kernels.needs_products || !kernels.needs_products(params)) {
      return check(kernels.cuda(params, workspace, stream));
    }
    Products products(api_, context_, scratch_);
    check(kernels.cuda_with_products(params, multiply, &products, workspace, stream));
  }

  const Kernel& kernel_;
  const Operator& op_;
  const OrtFunctions& api_;
  OrtKernelContext* context_;
  Scratch scratch_;
  Sizes sizes_;
  Input inputs_[kMaxInputs] = {};
  const void* input_data_[kMaxInputs] = {};
  void* outputs_[kMaxOutputs] = {};
};

void Call::allocate_output(int32_t index) {
  const Tensor& output = op_.outputs[index];
  std::vector<int64_t> shape(static_cast<size_t>(output.rank));
  for (int32_t i = 0; i < output.rank; ++i) shape[i] = sizes_.resolve(output.axes[i]);
  outputs_[index] = make_output(api_, context_, index, shape);
  if (outputs_[index]) return;
  // The graph leaves this output out; the kernel writes it all the same.
  int64_t bytes = kernel_.op.dtypes.of(output) == MAMBA_FP32 ? 4 : 2;
  for (int64_t size : shape) bytes = mamba::product(bytes, size);
  // A convolution of one tap has a state without elements.
  if (bytes > 0) outputs_[index] = scratch_.take(bytes, "an output that the graph leaves out");
}

}  // namespace

OrtStatus* create_kernel(const OrtCustomOp* base, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) noexcept {
  const auto& op = static_cast<const CustomOp&>(*base);
  return guarded(op.api, op.description.name, [&] {
    check_version(op.api, info);
    if (op.provider == kCuda) check(mamba_cuda_check_device(current_device()));
    *kernel = new Kernel(op, info);
  });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) noexcept {
  const auto& self = *static_cast<const Kernel*>(kernel);
  return guarded(self.op.api, self.op.description.name, [&] { Call(self, context).run(); });
}

void destroy_kernel(void* kernel) noexcept { delete static_cast<Kernel*>(kernel); }

}  // namespace mamba_ort
