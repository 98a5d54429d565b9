#include "log.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <mutex>

#include "versions.h"

namespace mamba_trt {
// ILogger and ILoggerFinder have had two layouts (versions.h): a library that trusts the headers it
// was built with calls the wrong member of the other. So both are declared here, and the one that
// the loading runtime has is taken by its version. Every other interface that a plugin meets is the
// same in the headers of 10.0, 10.3, 10.14 and 11.1.
//
// Not in an unnamed namespace: the compiler would see that nothing derives from these classes, and
// call nothing.
namespace plain {  // TensorRT 10, TensorRT-RTX 1.0 to 1.4
struct Logger {
  virtual void log(int32_t severity, const char* text) noexcept = 0;
};
struct Finder {
  virtual Logger* find() = 0;
};
}  // namespace plain

namespace versioned {  // TensorRT 11, TensorRT-RTX from 1.5 on
struct Info {
  const char* kind;
  int32_t major, minor;
};
struct Base {  // IVersionedInterface
  virtual int32_t language() const noexcept = 0;
  virtual Info info() const noexcept = 0;
  virtual ~Base() noexcept = default;
};
struct Logger : Base {
  virtual void log(int32_t severity, const char* text) noexcept = 0;
};
struct Finder : Base {
  virtual Logger* find() = 0;
};
}  // namespace versioned

namespace {

constexpr int32_t kError = 1;  // ILogger::Severity::kERROR

enum class Layout { kUnknown, kPlain, kVersioned };

// By the version of the library that the finder's code lies in.
Layout layout_of(void* finder) {
  Dl_info place = {};
  void* const virtual_table = *static_cast<void**>(finder);
  if (!dladdr(virtual_table, &place) || !place.dli_fname) return Layout::kUnknown;
  void* library = dlopen(place.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return Layout::kUnknown;
  using Version = int32_t (*)();
  const auto major = reinterpret_cast<Version>(dlsym(library, "getInferLibMajorVersion"));
  const auto minor = reinterpret_cast<Version>(dlsym(library, "getInferLibMinorVersion"));
  Layout layout = Layout::kUnknown;
  if (major && minor) {
    layout = has_versioned_interfaces(major(), minor()) ? Layout::kVersioned : Layout::kPlain;
  }
  dlclose(library);
  return layout;
}

struct Destination {
  std::mutex mutex;
  void* finder = nullptr;
  Layout layout = Layout::kUnknown;
};

Destination& destination() {
  static auto& one = *new Destination;  // plugins may outlive static destructors
  return one;
}

template <typename Finder>
bool write_to(void* finder, const char* text) {
  auto* logger = static_cast<Finder*>(finder)->find();
  if (logger) logger->log(kError, text);
  return logger != nullptr;
}

bool write_to_runtime(const char* text) {
  void* finder = nullptr;
  Layout layout = Layout::kUnknown;
  {
    // Not held while the logger runs: an application's logger may wait for a lock of its own.
    Destination& to = destination();
    const std::lock_guard<std::mutex> lock(to.mutex);
    finder = to.finder;
    layout = to.layout;
  }
  switch (layout) {
    case Layout::kPlain:
      return write_to<plain::Finder>(finder, text);
    case Layout::kVersioned:
      return write_to<versioned::Finder>(finder, text);
    case Layout::kUnknown:
      break;
  }
  return false;
}

}  // namespace

void set_logger_finder(void* finder) noexcept {
  try {
    const Layout layout = finder ? layout_of(finder) : Layout::kUnknown;
    Destination& to = destination();
    const std::lock_guard<std::mutex> lock(to.mutex);
    to.finder = finder;
    to.layout = layout;
  } catch (...) {  // no mutex or no memory: errors then go to standard error
  }
}

void log_error(const char* operator_name, const char* layer, const char* reason) noexcept {
  char text[1024];
  const bool named = layer && *layer;
  snprintf(text, sizeof text, "mamba_export %s%s%s%s: %s", operator_name, named ? " \"" : "",
           named ? layer : "", named ? "\"" : "", reason);
  // Names come from the model: one with a newline or an escape sequence stays one line of text.
  for (char* at = text; *at; ++at) {
    if (static_cast<unsigned char>(*at) < ' ' || *at == '\x7f') *at = '?';
  }
  try {
    if (write_to_runtime(text)) return;
  } catch (...) {  // the runtime's own finder may throw
  }
  fprintf(stderr, "%s\n", text);
}

}  // namespace mamba_trt
