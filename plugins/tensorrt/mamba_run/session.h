// One sequence on the GPU: reads a prompt at once, then goes on a token at a time.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "chooser.h"
#include "engine_files.h"
#include "gpu_memory.h"
#include "sampling.h"
#include "tensorrt_library.h"

namespace mamba_run {

// Finds the GPU and checks that the engine runs on it. Throws Error; returns the GPU's name.
std::string choose_device(int device, const EngineFiles& files);

class Session {
 public:
  // longest is the length of the longest prompt to come. Throws Error where the engine does not
  // load.
  // plugin_library is empty where the engine needs none.
  Session(const TensorRt& tensorrt, const EngineFiles& files, const std::string& plugin_library,
          int64_t longest, bool is_verbose);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Forgets what was read; from now on tokens are chosen so.
  void reset(const Sampling& sampling);

  // Reads tokens after those that were read before, and chooses the one that comes next.
  int64_t read(const std::vector<int64_t>& tokens);

  // Reads the token that was chosen last, and chooses the one after it.
  int64_t step();

 private:
  using Context = std::unique_ptr<nvinfer1::IExecutionContext>;

  void load(const TensorRt& tensorrt, const std::string& plugin_library);
  void check_tensors() const;
  Context make_context(int64_t length);
  // Tells a context the shapes of a run of this length, and where the tensors lie.
  void set_shapes(nvinfer1::IExecutionContext& context, int64_t length);
  // Checks that the tensors of a run whose shapes are set fit into the memory that it is given.
  void check_sizes(nvinfer1::IExecutionContext& context) const;
  void set_addresses(nvinfer1::IExecutionContext& context, size_t from);
  // Queues a run from the states of one side to those of the other, and the choice after it.
  bool queue(nvinfer1::IExecutionContext& context);
  bool capture_step();
  int64_t finish(const char* what, bool is_queued);

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
  Memory tokens_, host_tokens_, logits_;  // a choice goes to the front of tokens_
  size_t row_bytes_ = 0;                  // of the logits of one step
  std::unique_ptr<Chooser> chooser_;

  // A step's graph for each side; captured after a first step of that side has run without.
  cudaGraphExec_t graphs_[2] = {};
  bool has_run_[2] = {};
  bool can_capture_ = true;
};

}  // namespace mamba_run
