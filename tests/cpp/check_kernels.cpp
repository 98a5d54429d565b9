// Runs every operator of the contract's table by its compiled kernels, of the CPU or of the GPU,
// and holds the results against plain loops in double precision. A program of its own, so that
// sanitizers can watch it: outputs and workspace start as NaN, check_memory.h has the allocations.
//
//   check_kernels cpu                                  best built with MAMBA_SANITIZE=address
//   compute-sanitizer --tool memcheck check_kernels cuda
//   compute-sanitizer --tool racecheck check_kernels cuda
//   check_kernels cuda StateSpaceDual MambaLayer       these operators alone, by their nodes' names
//   check_kernels cuda guards                          where there is no compute-sanitizer
//
// On a GPU a call runs directly, from a CUDA graph, and with its states written in their place.
#include <algorithm>
#include <set>

#include "check_case.h"
#include "check_cuda.h"
#include "check_memory.h"
#include "contract.h"
#include "plain_loops.h"

namespace check {
namespace {

using mamba_contract::Operator;
using mamba_contract::Role;
using mamba_contract::Tensor;

// Of relative errors (norm): what rounding in the dtype explains. Layers round between their
// operators too, in other places than the truth does.
double bound_of(const Operator& op, mamba_dtype dtype) {
  static constexpr double kBounds[] = {2e-5, 2e-3, 1.6e-2};
  const bool is_layer = op.kernels->needs_products != nullptr && dtype != MAMBA_FP32;
  return kBounds[dtype] * (is_layer ? 2 : 1);
}

// ||found - expected|| / ||expected||
double relative_error(const plain::Array& expected, const std::vector<char>& found,
                      mamba_dtype dtype) {
  double difference = 0, scale = 0;
  for (size_t i = 0; i < expected.values.size(); ++i) {
    const double off = plain::load(found.data(), i, dtype) - expected.values[i];
    difference += off * off;
    scale += expected.values[i] * expected.values[i];
  }
  return scale == 0 ? difference : std::sqrt(difference / scale);
}

class Run {
 public:
  Run(const Options& options, const Case& c) : options_(options), case_(c), sizes_(c.op) {
    for (const Tensor& tensor : c.op.inputs) {
      inputs_.emplace_back(options, content(tensor.name, tensor).size());
      inputs_.back().set(content(tensor.name, tensor));
      shapes_.push_back(c.shape_of(tensor));
    }
    for (const Tensor& tensor : c.op.outputs) {
      size_t bytes = plain::bytes_of(c.dtypes.of(tensor));
      for (int64_t size : c.shape_of(tensor)) bytes *= static_cast<size_t>(size);
      outputs_.emplace_back(options, bytes);
    }
    sizes_.match([&](int32_t input) {
      return mamba_contract::Shape{shapes_[input].data(),
                                   static_cast<int32_t>(shapes_[input].size())};
    });
  }

  // Runs it in every way, and returns the largest error.
  double check() {
    truth_ = plain::truth_of(case_.op.name, case_.values);
    if (options_.device == Device::kCuda) return check_on_gpu();
    mamba_contract::check(case_.op.kernels->cpu(parameters(false).get(), nullptr, nullptr));
    return compare("");
  }

  // The kernel that a GPU runs: of state space duality, or of a layer for few rows or many.
  std::string form() const {
    if (options_.device == Device::kCpu) return "";
    const mamba_contract::Params params = parameters(false);
    if (std::string(case_.op.name).rfind("StateSpaceDual", 0) == 0) {
      return mamba_state_space_dual_cuda_form(
          static_cast<const mamba_state_space_dual_params*>(params.get()), 0);
    }
    if (!case_.op.kernels->needs_products) return "";
    return has_products(params) ? "rows" : "step";
  }

 private:
  bool has_products(const mamba_contract::Params& params) const {
    return case_.op.kernels->needs_products && case_.op.kernels->needs_products(params.get());
  }

#if CHECK_CUDA
  double check_on_gpu() {
    const mamba_contract::Params params = parameters(false);
    const mamba_contract::Kernels& kernels = *case_.op.kernels;
    const Stream stream;
    Memory workspace(options_, kernels.cuda_workspace(params.get()));
    const auto launch = [&](const mamba_contract::Params& call) {
      void* const memory = workspace.bytes() ? workspace.data() : nullptr;
      mamba_contract::check(has_products(call) ? kernels.cuda_with_products(call.get(), multiply,
                                                                            nullptr, memory, stream)
                                               : kernels.cuda(call.get(), memory, stream));
    };
    const auto finish = [&](const char* how) {
      check_cuda(cudaStreamSynchronize(stream), case_.text().c_str());
      if (!workspace.is_intact()) refuse(how, "it writes beside the workspace");
      workspace.poison();
    };
    workspace.poison();
    launch(params);
    finish("");
    double error = compare("");
    if (!has_products(params)) {
      std::vector<std::vector<char>> direct;
      for (Memory& output : outputs_) {
        direct.push_back(output.get());
        output.poison();
      }
      replay([&] { launch(params); }, stream);
      finish(", captured");
      for (size_t i = 0; i < outputs_.size(); ++i) {
        if (outputs_[i].get() != direct[i]) refuse(", captured", "it gives other bits");
      }
    }
    for (int32_t i = 0; i < case_.op.outputs.count; ++i) {
      const Tensor& output = case_.op.outputs[i];
      if (output.role == Role::kLastState) {
        outputs_[i].set(content(case_.op.inputs[output.like].name, output));
      } else {
        outputs_[i].poison();
      }
    }
    launch(parameters(true));
    finish(", in place");
    return std::max(error, compare(", in place"));
  }
#else
  double check_on_gpu() { fail("this program was built without CUDA"); }
#endif

  [[noreturn]] void refuse(const char* how, const std::string& why) const {
    throw std::runtime_error(case_.text() + " " + form() + how + ": " + why);
  }

  std::vector<char> content(const char* input, const Tensor& tensor) const {
    return bytes_of(case_.values[input], case_.dtypes.of(tensor));
  }

  // in_place: states are read from where they are written.
  mamba_contract::Params parameters(bool in_place) const {
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    for (const Memory& memory : inputs_) inputs.push_back(memory.data());
    for (const Memory& memory : outputs_) outputs.push_back(memory.data());
    for (int32_t i = 0; in_place && i < case_.op.outputs.count; ++i) {
      const Tensor& output = case_.op.outputs[i];
      if (output.role == Role::kLastState) inputs[output.like] = outputs[i];
    }
    return mamba_contract::fill(case_.op, {sizes_, case_.dtypes, case_.attributes,
                                           case_.constant_weights, inputs.data(), outputs.data()});
  }

  double compare(const char* how) const {
    double largest = 0;
    for (int32_t i = 0; i < case_.op.outputs.count; ++i) {
      const Tensor& tensor = case_.op.outputs[i];
      const double error = relative_error(truth_[i], outputs_[i].get(), case_.dtypes.of(tensor));
      if (!(error <= bound_of(case_.op, case_.dtypes.T))) {
        refuse(how, std::string(tensor.name) + " is " + std::to_string(error) + " from the truth");
      }
      if (!outputs_[i].is_intact()) refuse(how, std::string("it writes beside ") + tensor.name);
      largest = std::max(largest, error);
    }
    for (int32_t i = 0; i < case_.op.inputs.count; ++i) {
      const Tensor& tensor = case_.op.inputs[i];
      if (!inputs_[i].is_intact() || inputs_[i].get() != content(tensor.name, tensor)) {
        refuse(how, std::string("it writes to the input ") + tensor.name);
      }
    }
    return largest;
  }

  const Options options_;
  const Case& case_;
  mamba_contract::Sizes sizes_;
  std::vector<Memory> inputs_, outputs_;
  std::vector<std::vector<int64_t>> shapes_;
  plain::Results truth_;
};

// Returns how many checks failed.
int run_all(const Options& options, const std::set<std::string>& nodes) {
  int checks = 0, failures = 0;
  uint32_t seed = 0;              // a case's own, whatever operators are asked for
  std::set<std::string> missing;  // kernels that no case ran
  if (options.device == Device::kCuda) {
    mamba_contract::check(mamba_cuda_check_device(0));
    if (nodes.empty()) missing = forms_of_gpu();
  }
  for (const Operator& op : mamba_contract::kOperators) {
    const bool on_cpu = options.device == Device::kCpu;
    if (on_cpu ? !op.has_cpu_kernel : op.kernels->cuda == nullptr) continue;
    const auto all = cases::cases_of(op.name, options.device == Device::kCuda);
    if (all.empty()) fail(std::string(op.name) + " has no case");
    for (const cases::Sizes& sizes : all) {
      for (const mamba_dtype dtype : {MAMBA_FP32, MAMBA_FP16, MAMBA_BF16}) {
        std::mt19937 random(seed++);
        if (!nodes.empty() && nodes.count(op.name) == 0) continue;
        ++checks;
        const auto either = [&] { return random() % 2 ? dtype : MAMBA_FP32; };
        const mamba_dtype residual = either(), state = either();
        Case c{op, sizes, {dtype, residual, state}, random() % 2 != 0, {}};
        draw(c, random);
        Run run(options, c);
        try {
          const double error = run.check();
          std::printf("%-90s %-6s %.1e\n", c.text().c_str(), run.form().c_str(), error);
        } catch (const std::exception& error) {
          std::printf("FAILED %s\n", error.what());
          ++failures;
        }
        missing.erase(run.form());
      }
    }
  }
  for (const std::string& form : missing) {
    std::printf("FAILED no case ran the kernel of state space duality that is called %s\n",
                form.c_str());
    ++failures;
  }
  if (checks == 0) fail("no operator has that name");
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures;
}

}  // namespace
}  // namespace check

int main(int argc, char** argv) {
  std::set<std::string> nodes(argv + 1, argv + argc);
  const bool on_gpu = nodes.erase("cuda") == 1, guards = nodes.erase("guards") == 1;
  if ((nodes.erase("cpu") == 1) == on_gpu) check::fail("expected cpu or cuda");
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);  // whole lines, though a sanitizer ends it
  try {
    const auto device = on_gpu ? check::Device::kCuda : check::Device::kCpu;
    return check::run_all({device, guards}, nodes) ? 1 : 0;
  } catch (const std::exception& error) {
    check::fail(error.what());
  }
}
