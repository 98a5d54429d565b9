#include "session.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "error.h"
#include "files.h"

namespace mamba_run {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr char kRtxCapabilities[] = "8.0, 8.6, 8.9 and 12.x";

size_t size_of(DataType type) {
  if (type == DataType::kINT64) return 8;
  if (type == DataType::kFLOAT) return 4;
  return 2;
}

bool is_number(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

mamba_dtype dtype_of(DataType type) {
  if (type == DataType::kHALF) return MAMBA_FP16;
  return type == DataType::kBF16 ? MAMBA_BF16 : MAMBA_FP32;
}

// Of a tensor with a batch of 1 and fixed sizes.
size_t bytes_of(const Dims& dims, DataType type) {
  size_t bytes = size_of(type);
  for (int32_t i = 1; i < dims.nbDims; ++i) {
    if (dims.d[i] < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(dims.d[i]), &bytes)) {
      throw Error("the engine has a state of impossible size: build it again");
    }
  }
  return bytes;
}

std::string mebibytes(size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

std::vector<char> read_engine(const std::string& path) {
  File file(path);
  const size_t bytes = file.size();
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "GPU memory");
  if (free < bytes) {
    throw Error("not enough GPU memory: " + path + " alone has " + mebibytes(bytes) + ", and " +
                mebibytes(free) + " of " + mebibytes(total) + " are free");
  }
  std::vector<char> content(bytes);
  if (file.read(content.data(), bytes) != bytes) throw Error(path + " is truncated");
  return content;
}

}  // namespace

std::string choose_device(int device, const EngineFiles& files) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    throw Error(std::string("no NVIDIA GPU can be used: ") +
                cudaGetErrorString(error == cudaSuccess ? cudaErrorNoDevice : error));
  }
  if (device >= count) {
    throw Error("--device is " + std::to_string(device) + ", and this machine has " +
                std::to_string(count) + (count == 1 ? " GPU" : " GPUs"));
  }
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "GPU");
  const std::string found =
      std::to_string(properties.major) + "." + std::to_string(properties.minor);
  const std::string what =
      std::string(properties.name) + " has compute capability " + found + ", and the engine ";
  if (!files.compute_capability.empty() && files.compute_capability != found) {
    throw Error(what + "was built for " + files.compute_capability +
                ": build it again on this machine (DEPLOY.md says how)");
  }
  const bool is_in_rtx = (properties.major == 8 && properties.minor != 7) || properties.major == 12;
  if (files.is_rtx && !is_in_rtx) {
    throw Error(what + "is one of TensorRT-RTX, which supports " + kRtxCapabilities +
                ": build it with TensorRT (DEPLOY.md says how)");
  }
  check(cudaSetDevice(device), "GPU");
  return properties.name;
}

Session::Session(const TensorRt& tensorrt, const EngineFiles& files,
                 const std::string& plugin_library, int64_t longest, bool is_verbose)
    : files_(files), log_(is_verbose) {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "CUDA stream");
  load(tensorrt, plugin_library);
  check_tensors();
  prompt_context_ = make_context(longest);
  step_context_ = make_context(1);

  tokens_ = Memory(static_cast<size_t>(longest) * 8, Memory::Place::kDevice);
  host_tokens_ = Memory(tokens_.bytes(), Memory::Place::kHost);
  for (auto& side : states_) {
    for (const auto& [past, present] : files.states) {
      const DataType type = engine_->getTensorDataType(past.c_str());
      side.emplace_back(bytes_of(engine_->getTensorShape(past.c_str()), type),
                        Memory::Place::kDevice);
    }
  }
  // The logits of every step of the prompt, or of its last one: as the graph has it.
  set_shapes(*prompt_context_, longest);
  const Dims shape = prompt_context_->getTensorShape(files.output.c_str());
  const size_t rows = shape.nbDims == 3 && shape.d[1] == longest ? longest : 1;
  const DataType type = engine_->getTensorDataType(files.output.c_str());
  row_bytes_ = static_cast<size_t>(files.vocab_size) * size_of(type);
  logits_ = Memory(rows * row_bytes_, Memory::Place::kDevice);
  chooser_ = std::make_unique<Chooser>(files.vocab_size, dtype_of(type));
  check_sizes(*prompt_context_);
  set_shapes(*step_context_, 1);
  check_sizes(*step_context_);
}

Session::~Session() {
  for (cudaGraphExec_t graph : graphs_) {
    if (graph) cudaGraphExecDestroy(graph);
  }
  if (stream_) cudaStreamDestroy(stream_);
}

void Session::load(const TensorRt& tensorrt, const std::string& plugin_library) {
  const std::vector<char> content = read_engine(files_.engine);
  runtime_.reset(tensorrt.make_runtime(log_));
  if (!plugin_library.empty() &&
      !runtime_->getPluginRegistry().loadLibrary(plugin_library.c_str())) {
    throw Error(plugin_library + " cannot be loaded by " + tensorrt.name() + ": " +
                log_.take_error());
  }
  engine_.reset(runtime_->deserializeCudaEngine(content.data(), content.size()));
  if (!engine_) {
    throw Error(files_.engine + " cannot be loaded by " + tensorrt.name() + ": " +
                log_.take_error());
  }
}

void Session::check_tensors() const {
  const auto need = [&](const std::string& name, bool is_right) {
    if (!is_right) {
      throw Error(files_.engine + " has no " + name +
                  " as engine.json describes it: it is another engine");
    }
  };
  const auto type = [&](const std::string& name) {
    return engine_->getTensorDataType(name.c_str());
  };
  const auto mode = [&](const std::string& name) { return engine_->getTensorIOMode(name.c_str()); };
  using nvinfer1::TensorIOMode;
  const auto profiles = static_cast<size_t>(engine_->getNbOptimizationProfiles());
  need("profiles", profiles == files_.profiles.size());
  need(files_.input, mode(files_.input) == TensorIOMode::kINPUT &&
                         type(files_.input) == DataType::kINT64 &&
                         engine_->getTensorShape(files_.input.c_str()).nbDims == 2);
  need(files_.output,
       mode(files_.output) == TensorIOMode::kOUTPUT && is_number(type(files_.output)));
  for (const auto& [past, present] : files_.states) {
    need(past, mode(past) == TensorIOMode::kINPUT && is_number(type(past)));
    need(present, mode(present) == TensorIOMode::kOUTPUT && type(present) == type(past));
    const Dims dims = engine_->getTensorShape(past.c_str());
    for (int32_t i = 1; i < dims.nbDims; ++i) need(past, dims.d[i] > 0);
  }
}

Session::Context Session::make_context(int64_t length) {
  Context context(engine_->createExecutionContext());
  const auto profile = static_cast<int32_t>(files_.profile_for(length));
  if (!context || !context->setOptimizationProfileAsync(profile, stream_)) {
    throw Error("the engine cannot be run: " + log_.take_error());
  }
  check(cudaStreamSynchronize(stream_), "profile");
  return context;
}

void Session::set_shapes(nvinfer1::IExecutionContext& context, int64_t length) {
  Dims tokens{};
  tokens.nbDims = 2;
  tokens.d[0] = 1;
  tokens.d[1] = length;
  bool is_taken = context.setInputShape(files_.input.c_str(), tokens);
  for (const auto& [past, present] : files_.states) {
    Dims dims = engine_->getTensorShape(past.c_str());
    dims.d[0] = 1;
    is_taken = is_taken && context.setInputShape(past.c_str(), dims);
  }
  if (!is_taken) throw Error("the engine does not take the shapes: " + log_.take_error());
  if (&context == prompt_context_.get()) prompt_length_ = length;
}

void Session::check_sizes(nvinfer1::IExecutionContext& context) const {
  const Dims logits = context.getTensorShape(files_.output.c_str());
  const auto rows = static_cast<int64_t>(logits_.bytes() / row_bytes_);
  if (logits.nbDims != 3 || logits.d[0] != 1 || logits.d[1] < 1 || logits.d[1] > rows ||
      logits.d[2] != files_.vocab_size) {
    throw Error("the engine's output " + files_.output + " is not (batch, length, " +
                std::to_string(files_.vocab_size) + "): engine.json is of another engine");
  }
  for (const auto& [past, present] : files_.states) {
    const Dims before = context.getTensorShape(past.c_str());
    const Dims after = context.getTensorShape(present.c_str());
    if (before.nbDims < 0 || before.nbDims != after.nbDims ||
        !std::equal(before.d, before.d + before.nbDims, after.d)) {
      throw Error(files_.engine + " returns " + present + " in another shape than " + past +
                  ": engine.json is of another engine");
    }
  }
}

void Session::set_addresses(nvinfer1::IExecutionContext& context, size_t from) {
  bool is_taken = context.setTensorAddress(files_.input.c_str(), tokens_.data()) &&
                  context.setTensorAddress(files_.output.c_str(), logits_.data());
  for (size_t i = 0; i < files_.states.size(); ++i) {
    const auto& [past, present] = files_.states[i];
    is_taken = is_taken && context.setTensorAddress(past.c_str(), states_[from][i].data()) &&
               context.setTensorAddress(present.c_str(), states_[1 - from][i].data());
  }
  if (!is_taken) throw Error("the engine does not take the tensors: " + log_.take_error());
}

void Session::reset(const Sampling& sampling) {
  chooser_->start(sampling);
  for (const Memory& state : states_[side_]) {
    check(cudaMemsetAsync(state.data(), 0, state.bytes(), stream_), "states");
  }
}

bool Session::queue(nvinfer1::IExecutionContext& context) {
  const Dims shape = context.getTensorShape(files_.output.c_str());
  const char* last = static_cast<char*>(logits_.data()) + (shape.d[1] - 1) * row_bytes_;
  return context.enqueueV3(stream_) &&
         chooser_->queue(last, static_cast<int64_t*>(tokens_.data()), stream_);
}

int64_t Session::finish(const char* what, bool is_queued) {
  const cudaError_t error = cudaStreamSynchronize(stream_);
  if (!is_queued) {
    const std::string refused = mamba_last_error();
    throw Error(std::string(what) +
                " cannot be run: " + (refused.empty() ? log_.take_error() : refused));
  }
  check(error, what);
  side_ = 1 - side_;
  return chooser_->chosen();
}

int64_t Session::read(const std::vector<int64_t>& tokens) {
  const auto length = static_cast<int64_t>(tokens.size());
  const size_t bytes = tokens.size() * sizeof(int64_t);
  nvinfer1::IExecutionContext& context = length == 1 ? *step_context_ : *prompt_context_;
  if (length > 1 && prompt_length_ != length) {
    set_shapes(context, length);
    check_sizes(context);
  }
  set_addresses(context, side_);
  std::memcpy(host_tokens_.data(), tokens.data(), bytes);
  check(
      cudaMemcpyAsync(tokens_.data(), host_tokens_.data(), bytes, cudaMemcpyHostToDevice, stream_),
      "the prompt");
  chooser_->draw();
  return finish("the prompt", queue(context));
}

int64_t Session::step() {
  chooser_->draw();
  if (!graphs_[side_] && has_run_[side_] && can_capture_) can_capture_ = capture_step();
  if (graphs_[side_]) {
    return finish("a step", cudaGraphLaunch(graphs_[side_], stream_) == cudaSuccess);
  }
  has_run_[side_] = true;
  set_addresses(*step_context_, side_);
  return finish("a step", queue(*step_context_));
}

// False where the engine cannot be captured: steps are then queued one by one.
bool Session::capture_step() {
  set_addresses(*step_context_, side_);
  if (cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal) != cudaSuccess)
    return false;
  const bool is_queued = queue(*step_context_);
  cudaGraph_t graph = nullptr;
  const bool is_captured = cudaStreamEndCapture(stream_, &graph) == cudaSuccess && is_queued &&
                           cudaGraphInstantiate(&graphs_[side_], graph, 0) == cudaSuccess;
  if (graph) cudaGraphDestroy(graph);
  if (!is_captured) {
    graphs_[side_] = nullptr;
    cudaGetLastError();  // what failed is not an error of the runs to come
    log_.take_error();
  }
  return is_captured;
}

}  // namespace mamba_run
