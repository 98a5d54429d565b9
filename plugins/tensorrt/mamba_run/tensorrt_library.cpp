#include "tensorrt_library.h"

#include <dlfcn.h>

#include <cstdio>
#include <vector>

#include "error.h"
#include "files.h"
#include "printing.h"
#include "versions.h"

namespace mamba_run {
namespace {

using mamba_trt::has_versioned_interfaces;
using mamba_trt::is_rtx;

std::string title(int32_t major, int32_t minor) {
  return std::string(is_rtx(major) ? "TensorRT-RTX " : "TensorRT ") + std::to_string(major) + "." +
         std::to_string(minor);
}

// The names that installers give it, best first.
std::vector<std::string> usual_names(bool wants_rtx) {
  if (wants_rtx) return {"libtensorrt_rtx.so.1", "libtensorrt_rtx.so"};
  const int32_t own = is_rtx(NV_TENSORRT_MAJOR) ? 11 : NV_TENSORRT_MAJOR;
  return {"libnvinfer.so." + std::to_string(own),
          own == 10 ? "libnvinfer.so.11" : "libnvinfer.so.10"};
}

// Interfaces are only ever appended to within a major version of TensorRT, and change with it.
bool are_interfaces_known(int32_t major, int32_t minor) {
  if (!is_rtx(major) && !is_rtx(NV_TENSORRT_MAJOR)) return major == NV_TENSORRT_MAJOR;
  return has_versioned_interfaces(major, minor) ==
         has_versioned_interfaces(NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
}

}  // namespace

void Log::log(Severity severity, const char* text) noexcept {
  const bool is_error = severity == Severity::kERROR || severity == Severity::kINTERNAL_ERROR;
  try {
    if (is_verbose_) fprintf(stderr, "%s\n", printable(text).c_str());
    if (!is_error) return;
    const std::lock_guard<std::mutex> lock(mutex_);  // TensorRT logs from threads of its own
    const std::string line = text;
    if (error_.empty()) error_ = line.substr(0, line.find('\n'));
  } catch (...) {  // no memory for a message
  }
}

std::string Log::take_error() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::string found = error_.empty() ? "it gives no reason" : error_;
  error_.clear();
  return found;
}

TensorRt::TensorRt(const std::string& path, const EngineFiles& files) {
  const std::vector<std::string> names =
      path.empty() ? usual_names(files.is_rtx) : std::vector<std::string>{path};
  // A bare name is looked for by the system; a FIFO of that path would keep the loader waiting.
  if (path.find('/') != std::string::npos && is_there(path)) File{path};
  std::string opened, tried;
  for (const std::string& name : names) {
    opened = name;
    library_ = dlopen(name.c_str(), RTLD_LAZY | RTLD_GLOBAL);
    if (library_) break;
    tried += (tried.empty() ? "" : "; ") + std::string(dlerror());
  }
  if (!library_) {
    throw Error(std::string("the engine needs ") + (files.is_rtx ? "TensorRT-RTX" : "TensorRT") +
                ", which cannot be opened (" + tried +
                "): install it, set LD_LIBRARY_PATH, or name it with --tensorrt");
  }
  using Version = int32_t (*)();
  const auto major = reinterpret_cast<Version>(dlsym(library_, "getInferLibMajorVersion"));
  const auto minor = reinterpret_cast<Version>(dlsym(library_, "getInferLibMinorVersion"));
  if (!major || !minor || !dlsym(library_, "createInferRuntime_INTERNAL")) {
    throw Error(opened + " is no TensorRT library");
  }
  name_ = title(major(), minor());
  if (is_rtx(major()) != files.is_rtx) {
    throw Error("the engine is one of " + std::string(files.is_rtx ? "TensorRT-RTX" : "TensorRT") +
                ", and " + opened + " is " + name_);
  }
  if (!are_interfaces_known(major(), minor())) {
    throw Error(
        name_ + " has other interfaces than " + title(NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR) +
        ", whose headers this mamba_run was compiled with: compile it with the headers of " +
        name_ + " (cmake -DTENSORRT_INCLUDE_DIR=...)");
  }
}

nvinfer1::IRuntime* TensorRt::make_runtime(Log& log) const {
  using Create = void* (*)(void*, int32_t);
  const auto create = reinterpret_cast<Create>(dlsym(library_, "createInferRuntime_INTERNAL"));
  auto* runtime = static_cast<nvinfer1::IRuntime*>(create(&log, NV_TENSORRT_VERSION));
  if (!runtime) throw Error(name_ + " does not start: " + log.take_error());
  return runtime;
}

}  // namespace mamba_run
