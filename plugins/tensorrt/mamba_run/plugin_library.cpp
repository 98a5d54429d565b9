#include "plugin_library.h"

#include <dlfcn.h>

#include <filesystem>

#include "error.h"
#include "files.h"

namespace mamba_run {
namespace {

namespace fs = std::filesystem;

constexpr char kFile[] = MAMBA_PLUGIN_FILE;  // the build gives its name

std::string path_of(const std::string& option) {
  // Absolute: the dynamic loader would look for a bare name elsewhere.
  std::error_code error;
  if (!option.empty()) return fs::absolute(option, error).string();
  const fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  if (error || !is_there((folder / kFile).string())) {
    throw Error(std::string("the engine needs ") + kFile +
                ", which does not lie beside this program: name it with --plugin");
  }
  return (folder / kFile).string();
}

}  // namespace

std::string find_plugin_library(const std::string& option) {
  const std::string path = path_of(option);
  File(path).size();  // its errors are clearer than the loader's
  // Says what is wrong with it before TensorRT does, which gives no reason.
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (!library) throw Error(path + " is no library of this machine: " + dlerror());
  const bool is_ours = dlsym(library, "getCreators") && dlsym(library, "setLoggerFinder");
  dlclose(library);
  if (!is_ours) throw Error(path + " is no TensorRT plugin library: it exports no getCreators");
  return path;
}

}  // namespace mamba_run
