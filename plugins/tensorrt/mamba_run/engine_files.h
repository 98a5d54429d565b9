// An engine and what `mamba-export build` wrote beside it, read and checked before anything is
// loaded.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mamba_run {

// Values that an engine takes, and the one that its kernels were chosen for.
struct Range {
  int64_t minimum, optimum, maximum;

  bool holds(int64_t value) const { return minimum <= value && value <= maximum; }
};

struct Profile {
  std::string name;
  Range batch, length;
};

struct EngineFiles {
  std::string engine;              // path
  bool needs_plugins;              // layers of the engine are our plugins
  bool is_rtx;                     // an engine of TensorRT-RTX
  std::string runtime_version;     // of what built it; empty where unknown
  std::string compute_capability;  // of the GPU that it is for; empty where it is not tied to one
  std::string input, output;       // names of token ids and logits
  std::vector<std::pair<std::string, std::string>> states;  // input and output that returns it
  std::vector<Profile> profiles;                            // in the engine's order
  bool has_byte_tokenizer;
  int64_t vocab_size;
  std::vector<int64_t> end_tokens;  // each of them ends a text

  // The profile that takes this many steps, the one for the longest prompts first; throws Error,
  // which names the ranges.
  size_t profile_for(int64_t length) const;
};

// path is an engine file or its folder. Throws Error where a file is missing, damaged, truncated,
// foreign or of another version. The engine's SHA-256 takes seconds for gigabytes: check_content
// false leaves it out.
EngineFiles read_engine_files(const std::string& path, bool check_content);

}  // namespace mamba_run
