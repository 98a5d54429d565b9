// TensorRT or TensorRT-RTX, opened when the program runs: one program serves machines that have
// either.
#pragma once

#include <NvInferRuntime.h>

#include <mutex>
#include <string>

#include "engine_files.h"

namespace mamba_run {

// Keeps TensorRT's last error, for our own messages.
class Log final : public nvinfer1::ILogger {
 public:
  explicit Log(bool is_verbose) : is_verbose_(is_verbose) {}
  void log(Severity severity, const char* text) noexcept override;

  // The first error since the last call, in one line; "it gives no reason" where there was none.
  std::string take_error();

 private:
  bool is_verbose_;
  std::mutex mutex_;
  std::string error_;
};

class TensorRt {
 public:
  // path is a library to open, empty for the system's. Throws Error where there is none that runs
  // the engine, or its interfaces are not those that this program was compiled for.
  TensorRt(const std::string& path, const EngineFiles& files);

  // The caller deletes it.
  nvinfer1::IRuntime* make_runtime(Log& log) const;

  // Such as "TensorRT 10.14".
  const std::string& name() const { return name_; }

 private:
  void* library_ = nullptr;  // stays open
  std::string name_;
};

}  // namespace mamba_run
