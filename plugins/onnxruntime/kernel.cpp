// A node of the graph: its attributes are read once, its shapes are checked and its kernel called
// at each run.
#include "context.h"
#include "cuda_device.h"

namespace mamba_ort {
namespace {

// Attributes only: any number of threads may run one kernel.
struct Kernel {
  const CustomOp& op;
  bool reverse;
  bool flag;  // delta_softplus or silu
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

// One run of a node.
class Call {
 public:
  Call(const Kernel& kernel, OrtKernelContext* context)
      : kernel_(kernel),
        api_(kernel.op.api),
        context_(context),
        scratch_(api_, context, kernel.op.provider) {
    const Operator& description = kernel.op.description;
    for (int32_t i = 0; i < description.input_count; ++i) {
      inputs_[i] = read_input(api_, context, i);
      sizes_.match(description.inputs[i], inputs_[i].shape.data(), inputs_[i].shape.size());
    }
    if (!description.is_convolution) sizes_.check_groups();
    for (int32_t i = 0; i < kOutputs; ++i) allocate_output(i);
  }

  void run() {
    if (kernel_.op.description.is_convolution) {
      run_convolution();
    } else {
      run_scan();
    }
  }

 private:
  void allocate_output(int32_t index);
  void run_scan();
  void run_convolution();

  template <typename Params>
  void run_on_cpu(mamba_status (*kernel)(const Params*, mamba_parallel_for, void*),
                  const Params& params) const {
    Scheduler scheduler{api_, context_};
    const mamba_status status = kernel(&params, run_tasks, &scheduler);
    check(scheduler.failure);
    check(status);
  }

  const float* numbers(size_t input) const {
    return static_cast<const float*>(inputs_[input].data);
  }
  mamba_sequence sequence(size_t input, int64_t width) const {
    return {inputs_[input].data, sizes_[kLength] * width, width};
  }

  const Kernel& kernel_;
  const OrtFunctions& api_;
  OrtKernelContext* context_;
  Scratch scratch_;
  Sizes sizes_;
  Input inputs_[kMostInputs] = {};
  void* outputs_[kOutputs] = {};
};

void Call::allocate_output(int32_t index) {
  const Operator& description = kernel_.op.description;
  const int32_t like = like_input(description, index);
  const std::vector<int64_t>& shape = inputs_[like].shape;
  outputs_[index] = make_output(api_, context_, index, shape);
  if (outputs_[index]) return;
  // The graph leaves this output out; the kernel writes it all the same.
  const bool is_wide = description.inputs[like].is_fp32 || kernel_.op.dtype == MAMBA_FP32;
  size_t bytes = is_wide ? 4 : 2;
  for (int64_t size : shape) bytes *= static_cast<size_t>(size);
  // A convolution of one tap has a state without elements.
  if (bytes > 0) outputs_[index] = scratch_.take(bytes, "an output that the graph leaves out");
}

void Call::run_scan() {
  const int64_t inner = sizes_[kInner], per_step = sizes_[kGroups] * sizes_[kState];
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
  if (kernel_.op.provider == kCpu) return run_on_cpu(mamba_selective_scan_cpu, p);
  const size_t bytes = mamba_selective_scan_cuda_workspace(&p);
  void* workspace = bytes > 0 ? scratch_.take(bytes, "the scan's workspace") : nullptr;
  check(mamba_selective_scan_cuda(&p, workspace, stream_of(api_, context_)));
}

void Call::run_convolution() {
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
  p.initial_state = inputs_[3].data;
  p.y = outputs_[0];
  p.last_state = outputs_[1];
  if (kernel_.op.provider == kCpu) return run_on_cpu(mamba_causal_conv1d_cpu, p);
  check(mamba_causal_conv1d_cuda(&p, stream_of(api_, context_)));
}

}  // namespace

OrtStatus* create_kernel(const OrtCustomOp* base, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) noexcept {
  const auto& op = static_cast<const CustomOp&>(*base);
  return guarded(op.api, op.description.name, [&] {
    check_version(op.api, info);
    if (op.provider == kCuda) check(mamba_cuda_check_device(current_device()));
    *kernel = new Kernel{op, read_flag(op.api, info, kReverse),
                         read_flag(op.api, info, op.description.flag)};
  });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) noexcept {
  const auto& self = *static_cast<const Kernel*>(kernel);
  return guarded(self.op.api, self.op.description.name, [&] { Call(self, context).run(); });
}

void destroy_kernel(void* kernel) noexcept { delete static_cast<Kernel*>(kernel); }

}  // namespace mamba_ort
