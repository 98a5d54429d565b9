// One sequence on the GPU: reads a prompt at once, then a token at a time.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine_files.h"
#include "tensorrt_library.h"

namespace mamba_run {

// Finds the GPU and checks that the engine runs on it. Throws Error; returns the GPU's name.
std::string choose_device(int device, const EngineFiles& files);

// Memory on the GPU, or of the host that the GPU copies from and to without help.
class Memory {
 public:
  enum class Place { kDevice, kHost };

  Memory() = default;
  Memory(size_t bytes, Place place);
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Memory();

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Memory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(place_, other.place_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  Place place_ = Place::kDevice;
};

class Session {
 public:
  // longest is the length of the longest prompt to come. Throws Error where the engine does not
  // load.
  Session(const TensorRt& tensorrt, const EngineFiles& files, int64_t longest, bool is_verbose);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Forgets what was read.
  void reset();

  // Reads tokens after those that were read before, and returns the logits of what comes next.
  const std::vector<float>& read(const std::vector<int64_t>& tokens);
  const std::vector<float>& read(int64_t token);

 private:
  using Context = std::unique_ptr<nvinfer1::IExecutionContext>;

  void load(const TensorRt& tensorrt);
  void check_tensors() const;
  Context make_context(int64_t length);
  // Tells a context the shapes of a run of this length, and where the tensors lie.
  void set_shapes(nvinfer1::IExecutionContext& context, int64_t length);
  void set_addresses(nvinfer1::IExecutionContext& context, size_t from);
  // Queues copies and the engine for a run, from the states of one side to those of the other.
  bool queue(nvinfer1::IExecutionContext& context, int64_t length);
  bool capture_step();
  const std::vector<float>& finish(const char* what, bool is_queued);

  const EngineFiles& files_;
  Log log_;
  cudaStream_t stream_ = nullptr;
  // In this order: contexts go before the engine, the engine before the runtime.
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  Context prompt_context_, step_context_;
  int64_t prompt_length_ = 0;  // that prompt_context_ has been told

  // States have two sides: a run reads one and writes the other, and nothing is copied.
  std::vector<Memory> states_[2];
  size_t side_ = 0;
  Memory tokens_, host_tokens_, logits_, host_logits_;
  nvinfer1::DataType logits_type_;
  std::vector<float> found_;

  // A step's graph for each side; captured after a first step of that side has run without.
  cudaGraphExec_t graphs_[2] = {};
  bool has_run_[2] = {};
  bool can_capture_ = true;
};

}  // namespace mamba_run
