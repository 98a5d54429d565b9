// The library of our plugins: which one is opened. It is code, so neither engine.json nor what lies
// in an engine's folder chooses it.
#pragma once

#include <string>

namespace mamba_run {

// Absolute path of the library: `option`, what --plugin says, else the one beside this program.
// Throws Error where it is not there, or is no library of TensorRT plugins.
std::string find_plugin_library(const std::string& option);

}  // namespace mamba_run
